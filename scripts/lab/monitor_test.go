package lab

import (
	"slices"
	"testing"
)

func TestWrittenAgainIsNoChange(t *testing.T) {
	before := map[string]string{"10.10.0.0/24": "10.10.0.0/24 via 10.0.0.10 dev eth0 proto bird metric 32"}
	again, other := before["10.10.0.0/24"], "10.10.0.0/24 via 10.0.0.11 dev eth0 proto bird metric 32"
	for _, tt := range []struct{ events, want []string }{
		{[]string{again, again}, nil},
		{[]string{other, other, again}, []string{other, again}},
		{[]string{"Deleted " + again, again, again}, []string{"Deleted " + again, again}},
		{[]string{"10.10.1.0/24 via 10.0.0.11 dev eth0 proto bird metric 32"}, []string{"10.10.1.0/24 via 10.0.0.11 dev eth0 proto bird metric 32"}},
	} {
		if got := changes(tt.events, before); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.events, got, tt.want)
		}
	}
}
