package policy

import "testing"

func TestKernelsThatSpoilChecksums(t *testing.T) {
	for release, want := range map[string]bool{
		"3.10.0-1160.el7.x86_64": true, "4.14.180": true, "4.14.181": false, "4.15.0-213-generic": true, "4.18.0-240.el8.x86_64": true,
		"4.19.0-27-amd64": true, "4.19.122": true, "4.19.123": false, "4.19.300-1": false, "5.3.18": true, "5.4.0-150-generic": true, "5.4.40": true, "5.4.41": false,
		"5.4.257-edge": false, "5.5.19": true, "5.6.12": true, "5.6.13": false, "5.6": true, "5.6-rc3": true, "5.7": false, "5.7.0-rc1": false, "5.10.0-28-amd64": false,
		"6.18.44-fc-v595": false, "10.0": false, "": false, "unknown": false,
	} {
		if got := spoilsChecksums(release); got != want {
			t.Errorf("%s: %v, want %v", release, got, want)
		}
	}
}
