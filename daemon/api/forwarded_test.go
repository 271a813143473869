package api

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecodeForwarded(t *testing.T) {
	body := "\x01CNI_COMMAND=ADD\x00CNI_ARGS=A=B\x00CNI_COMMAND=DEL\x00CNI_NEW=x\x00CNI_PATH\x00\x00{\x00}\x00/run/s"
	got, err := decode([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	want := Request{Op: "cni", CNI: &CNI{Command: "ADD", Args: "A=B", Stdin: []byte("{\x00}"), Socket: "/run/s"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, end := range []int{1, 5, len("\x01CNI_COMMAND=ADD\x00"), len(body) - len("/run/s"), len(body) - len("\x00{\x00}\x00/run/s")} {
		if _, err := decode([]byte(body[:end])); !errors.Is(err, errCutShort) {
			t.Errorf("%q: got %v", body[:end], err)
		}
	}
}

func TestEncode(t *testing.T) {
	forwarded := Request{CNI: &CNI{Socket: "/s"}}
	for _, tt := range []struct {
		req   Request
		reply Reply
		want  string
	}{
		{forwarded, Reply{Output: []byte("{}")}, "\x00{}"},
		{forwarded, Reply{Output: []byte("{}"), Failed: true}, "\x01{}"},
		{forwarded, Reply{}, "\x00"},
		{forwarded, Reply{Error: "no"}, `{"error":"no"}`},
		{Request{CNI: &CNI{}}, Reply{Output: []byte("{}")}, `{"output":"e30="}`},
		{Request{}, Reply{Error: "no"}, `{"error":"no"}`},
	} {
		if got, err := encode(tt.req, tt.reply); string(got) != tt.want || err != nil {
			t.Errorf("%+v: got %q, %v; want %q", tt.reply, got, err, tt.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x01CNI_COMMAND=ADD\x00\x00{}\x00/run/s"))
	f.Add([]byte(`{"op":"cni","cni":{"command":"ADD","stdin":"e30="}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := decode(body)
		if err == nil && len(body) > 0 && body[0] == forwarded && (req.CNI == nil || req.CNI.Socket == "") {
			t.Errorf("%q passes for a request of the other form", body)
		}
	})
}
