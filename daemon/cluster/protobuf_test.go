package cluster

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// wrapped is an object as an API server sends it as protobuf.
func wrapped(t testing.TB, name string, object interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	raw, err := object.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: name}, Raw: raw}
	text, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte(protobufMagic), text...)
}

// frame is an event of a watch as an API server sends it as protobuf.
func frame(t testing.TB, event, name string, object interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	e := metav1.WatchEvent{Type: event, Object: runtime.RawExtension{Raw: wrapped(t, name, object)}}
	text, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// items are the items of a list.
func items(t *testing.T, text []byte) (all []item, meta listMeta) {
	t.Helper()
	meta, err := readList(bytes.NewReader(text), kind{"v1", kindNode}, func(it item) { all = append(all, it) })
	if err != nil {
		t.Fatal(err)
	}
	return all, meta
}

// The Nodes of all stories say the same as protobuf and as JSON, to the byte: in a list and in a watch.
func TestNodesAsProtobufSayTheSame(t *testing.T) {
	read := 0
	for path, objects := range stories(t) {
		list := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "more"}}
		for ref, text := range objects {
			var n corev1.Node
			if strings.HasPrefix(ref, kindNode+"/") && json.Unmarshal(text, &n) == nil { // else no API server has it
				n.ResourceVersion = "7"
				n.Annotations = map[string]string{"flannel.alpha.coreos.com/backend-type": "vxlan", "other": "x"}
				list.Items = append(list.Items, n)
			}
		}
		list.Kind = "NodeList"
		text, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		byJSON, metaJSON := items(t, text)
		binary := wrapped(t, "NodeList", &list)
		byProtobuf, meta := items(t, binary)
		same := func(a, b item) bool {
			return a.name == b.name && a.version == b.version && a.sum == b.sum && string(a.text) == string(b.text)
		}
		if meta != metaJSON || !slices.EqualFunc(byJSON, byProtobuf, same) {
			t.Errorf("%s: as JSON\n%+v\nas protobuf\n%+v", path, byJSON, byProtobuf)
		}
		read += len(byProtobuf)
		var watched []item
		for i := range list.Items {
			err := readEvents(bytes.NewReader(frame(t, "MODIFIED", kindNode, &list.Items[i])), func(event string, object func(any) error) error {
				it, err := readItem(kind{"v1", kindNode}, object)
				watched = append(watched, it)
				return errors.Join(err, map[bool]error{false: errors.New(event)}[event == "MODIFIED"])
			})
			if err != nil {
				t.Fatal(path, err)
			}
		}
		if !slices.EqualFunc(byJSON, watched, same) {
			t.Errorf("%s: watched as protobuf\n%+v", path, watched)
		}
		if len(binary) < 2000 { // a list that was cut anywhere does not count; its last four bytes say nothing
			for n := range len(binary) - 4 {
				if _, err := readList(bytes.NewReader(binary[:n]), kind{"v1", kindNode}, func(item) {}); err == nil {
					t.Fatalf("%s: the first %d of %d bytes count as a list", path, n, len(binary))
				}
			}
		}
	}
	if read < 50 {
		t.Errorf("%d Nodes read", read)
	}
}

// Refusals and the ends of watches are understood as protobuf too.
func TestRefusalsAsProtobuf(t *testing.T) {
	gone := apierrors.NewResourceExpired("too old").Status()
	if err := refusal(wrapped(t, "Status", &gone), http.StatusGone, 0); !expired(err) || !strings.Contains(err.Error(), "too old") {
		t.Error(err)
	}
	busy := metav1.Status{Message: "wait", Code: 429, Details: &metav1.StatusDetails{RetryAfterSeconds: 9}}
	if err := refusal(wrapped(t, "Status", &busy), 429, 0); RetryAfter(err) != 9*time.Second {
		t.Error(err)
	}
	bookmark := &corev1.Node{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "9"}}
	var said []string
	err := readEvents(bytes.NewReader(append(frame(t, eventBookmark, kindNode, bookmark), frame(t, eventError, "Status", &gone)...)), func(event string, object func(any) error) error {
		if event == eventError {
			var text json.RawMessage
			return errors.Join(object(&text), refusal(text, 0, 0))
		}
		it, err := readItem(kind{"v1", kindNode}, object)
		said = append(said, event+it.version)
		if !errors.Is(err, errNoObject) {
			t.Error(err)
		}
		return nil
	})
	if !expired(err) || !slices.Equal(said, []string{"BOOKMARK9"}) {
		t.Error(err, said)
	}
}

// No protobuf makes us panic or take a list for whole that is not, and each Node that we take from it can be read.
func FuzzProtobuf(f *testing.F) {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}}, Spec: corev1.NodeSpec{PodCIDR: "10.0.0.0/24", PodCIDRs: []string{"10.0.0.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "192.0.2.1"}}}}
	f.Add(wrapped(f, "NodeList", &corev1.NodeList{Items: []corev1.Node{node, node}}))
	f.Add(frame(f, "ADDED", kindNode, &node))
	f.Fuzz(func(t *testing.T, text []byte) {
		of := kind{"v1", kindNode}
		take := func(it item) {
			if s := it.statement(of); !s.valid() && len(s.problems) == 0 {
				t.Errorf("%s is not valid and has no problem", it.text)
			}
		}
		_, _ = readList(bytes.NewReader(append([]byte(protobufMagic), text...)), of, take)
		_ = readEvents(bytes.NewReader(append([]byte{0}, text...)), func(_ string, object func(any) error) error {
			it, err := readItem(of, object)
			if err == nil {
				take(it)
			}
			return err
		})
		_ = refusal(append([]byte(protobufMagic), text...), 0, 0)
	})
}

// A list of 5,000 Nodes, in both forms. The metrics are its sizes.
func BenchmarkListOf5000Nodes(b *testing.B) {
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList"}, Items: make([]corev1.Node, manyNodes)}
	for i := range list.Items {
		if err := json.Unmarshal(largeNode(i), &list.Items[i]); err != nil {
			b.Fatal(err)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		b.Fatal(err)
	}
	for name, text := range map[string][]byte{"JSON": text, "protobuf": wrapped(b, "NodeList", &list)} {
		b.Run(name, func(b *testing.B) {
			var line bytes.Buffer
			z, _ := gzip.NewWriterLevel(&line, 1) // as an API server
			_, _ = z.Write(text)
			_ = z.Close()
			b.ReportAllocs()
			began := cpu(b)
			for b.Loop() {
				r, err := gzip.NewReader(bytes.NewReader(line.Bytes()))
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				if _, err := readList(io.Reader(r), kind{"v1", kindNode}, func(it item) { n++; _ = it.told(kind{"v1", kindNode}, nil) }); err != nil || n != manyNodes {
					b.Fatal(n, err)
				}
			}
			b.ReportMetric((cpu(b)-began).Seconds()/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(len(text))/1e6, "MB")
			b.ReportMetric(float64(line.Len())/1e6, "MB-gzip")
		})
	}
}

// cpu is the processor time of this process.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
