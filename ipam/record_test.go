package ipam

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func FuzzEntry(f *testing.F) {
	f.Add(entry{held: true, leased: 99, holder: "c\x00eth0", memory: "n\x00d\x00p\x00eth0"}.encode())
	f.Add(entry{leased: 7, freed: 9}.encode())
	f.Add([]byte{1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeEntry(data)
		if err != nil {
			return
		}
		again, err := decodeEntry(e.encode())
		if err != nil || again != e {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func FuzzHeld(f *testing.F) {
	h := held{Seq: 3, Lease: Lease{Attachment: Attachment{"c", "eth0"}, Pod: Pod{Name: "p"}}}
	data, err := json.Marshal(h)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"seq":1,"lease":{"addrs":["10.1.0.1","fd00::1%eth0"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHeld(data)
		if err != nil {
			return
		}
		data, err = json.Marshal(h)
		if err != nil {
			return // a year beyond 9999 cannot be written back
		}
		if _, err := decodeHeld(data); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(state{seq: 1 << 40, leases: 3, held: 6, boot: "b"}.encode())
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeState(data)
		if err != nil {
			return
		}
		if again, err := decodeState(s.encode()); err != nil || again != s {
			t.Fatal(s, again, err)
		}
	})
}

// FuzzFile opens files that are not stores, or almost stores: errors, never a crash.
func FuzzFile(f *testing.F) {
	path := filepath.Join(ramDir(f), "ipam.db")
	filled(f, path, 4, false)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:64<<10], uint32(0), []byte{})
	f.Add(whole[:64<<10], uint32(0x3010), []byte{0xff, 0xff, 0xff})
	f.Add([]byte("SQLite format 3"), uint32(0), []byte{})
	f.Fuzz(func(t *testing.T, data []byte, at uint32, patch []byte) {
		if int(at) < len(data) {
			data = bytes.Clone(data)
			copy(data[at:], patch)
		}
		path := filepath.Join(ramDir(t), "ipam.db")
		copyFile(t, path, data)
		s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
		if err != nil {
			return
		}
		s.Leases()
		s.Allocate(t.Context(), request("fuzz", "pod1"))
		s.Release(t.Context(), Attachment{"fuzz", "eth0"})
		s.Check()
		s.Close()
	})
}
