package daemon

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
)

// The level of the log changes through the socket, and the daemon logs that it did.
func TestLogLevel(t *testing.T) {
	var level slog.LevelVar
	var out bytes.Buffer
	d := &Daemon{options: Options{Level: &level, Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: &level}))}}
	for _, c := range []struct {
		args []string
		want string // of the answer
	}{{nil, `"INFO"`}, {[]string{"debug"}, `"DEBUG"`}, {nil, `"DEBUG"`}, {[]string{"loud"}, ""}, {nil, `"DEBUG"`}} {
		reply := d.answer(t.Context(), api.Request{Op: "logLevel", Args: c.args}, nil)
		if string(reply.Output) != c.want || (c.want == "") != (reply.Error != "") {
			t.Errorf("%v: %s %s", c.args, reply.Output, reply.Error)
		}
	}
	if !d.options.Log.Enabled(t.Context(), slog.LevelDebug) || !strings.Contains(out.String(), `"msg":"log level"`) {
		t.Errorf("log: %s", &out)
	}
}

// What the daemon tells a command that plans has no password in it, but decides the same.
func TestKnownHasNoPassword(t *testing.T) {
	d := &Daemon{loop: &loop{}}
	if reply := d.answer(t.Context(), api.Request{Op: "known"}, nil); reply.Error != "" {
		t.Error(reply.Error)
	}
	long := bytes.Repeat([]byte("s3cret"), 20)
	d.loop.seen.Store(&view{World: policy.World{Self: "n", Cluster: cluster.World{Secrets: []cluster.Secret{
		{Name: "a", Data: map[string][]byte{"good": []byte("s3cret"), "empty": {}, "line": []byte("s3cret\n"), "long": long}}}}}})
	reply := d.answer(t.Context(), api.Request{Op: "known"}, nil)
	var known Known
	if err := json.Unmarshal(reply.Output, &known); err != nil {
		t.Fatal(err)
	}
	data := known.Cluster.Secrets[0].Data
	if string(data["good"]) != "x" || len(data["empty"]) != 0 || string(data["line"]) != "x\n" || len(data["long"]) != 81 || known.Self != "n" {
		t.Errorf("%q", data)
	}
}
