package ipam

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func FuzzEntry(f *testing.F) {
	f.Add(entry{held: true, home: 3, boot: 1, leased: 99, holder: "c\x00eth0", memory: "n\x00d\x00p\x00eth0"}.encode())
	f.Add(entry{home: 1, leased: 7, freed: 9}.encode())
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
	h := held{Seq: 3, Boot: 1, Lease: Lease{Attachment: Attachment{"c", "eth0"}, Pod: Pod{Name: "p"}}}
	data, err := h.encode()
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
		data, err = h.encode()
		if err != nil {
			return // a year beyond 9999 cannot be written back
		}
		if _, err := decodeHeld(data); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(state{seq: 1 << 40, leases: 3, held: 6, boots: 2, areas: 1, last: 2}.encode())
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeState(data)
		if err != nil {
			return
		}
		if again, err := decodeState(s.encode()); err != nil || again != s {
			t.Fatal(s, again, err)
		}
		if a, err := decodeAreaState([]byte{0, 0, 0, 1}, data); err == nil {
			if b, err := decodeAreaState([]byte{0, 0, 0, 1}, a.encode()); err != nil || b.gen != a.gen || b.cursor != a.cursor || !bytes.Equal(a.key, b.key) {
				t.Fatal(a, b, err)
			}
		}
	})
}

func FuzzJournalRecord(f *testing.F) {
	w := &writer{}
	w.set(1, change{"\x04\x0a\x01\x00\x01", []byte("stored")}, false)
	w.set(4, change{"pod", nil}, true)
	f.Add(encodeChanges(w))
	f.Add([]byte{0x85, 1, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		w, n := &writer{}, 0
		if eachChange(data, func(table int, c change) { w.set(table, c, true); n++ }) != nil {
			return
		}
		again := &recent{}
		if err := eachChange(encodeChanges(w), func(table int, c change) { again.set(table, c, true) }); err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(w.tables[:], again.tables[:], func(a, b []change) bool {
			return slices.EqualFunc(a, b, func(a, b change) bool {
				return a.key == b.key && bytes.Equal(a.stored, b.stored) && a.deleted() == b.deleted()
			})
		}) || n < len(w.touched) {
			t.Fatalf("%+v became %+v", w.tables, again.tables)
		}
	})
}

// FuzzFile opens what is no store, or almost one: errors, never a crash.
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
