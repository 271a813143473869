package policy

import "fmt"

// spoilsChecksums reports whether a kernel of that release sends VXLAN packets with a wrong checksum once a rule of the
// node translates them, as the masquerade of kube-proxy did before Kubernetes 1.19: the kernel wrote a checksum into the outer
// UDP header, which has none, while the checksum of the inner packet was still to be computed (Linux commit
// ea64d8d6c675, "netfilter: nat: never update the UDP checksum when it's 0", of 5.7). A distribution that has the mend
// in an older release computes the checksums in software without need, which costs throughput only. An unknown
// release is taken for a new kernel.
func spoilsChecksums(release string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false
	}
	switch 1000*major + minor { // the stable kernels that have the mend
	case 4014:
		return patch < 181
	case 4019:
		return patch < 123
	case 5004:
		return patch < 41
	case 5006:
		return patch < 13
	}
	return 1000*major+minor < 5007
}
