package bgp

import (
	"testing"
	"time"
)

// Every UPDATE is read without a panic, whatever it contains.
func FuzzUpdate(f *testing.F) {
	f.Add([]byte{0, 0, 0, 20, 0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea, 0x40, 3, 4, 192, 0, 2, 1, 24, 10, 1, 2})
	f.Add([]byte{0, 0, 0, 10, 0x90, 15, 0, 6, 0, 2, 1, 16, 0xfd, 0x99})
	f.Add([]byte{0, 0, 0, 30, 0x90, 14, 0, 26, 0, 2, 1, 16, 0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0xfd, 0x99})
	f.Add([]byte("\x00\x00\x00\x1e\x90\x0e\x00\x03\x00\x02\x0100000000000000000000000")) // an attribute of one octet
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 4000 {
			return
		}
		h := hearing{}
		h.begin(time.Now())
		h.ask(learnList)
		_ = h.update(goodPeer(), offer{known: true, ipv4: true}, framed(2, body...), time.Now())
	})
}
