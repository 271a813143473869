// Package cri tests edgeway under a real container runtime. It speaks the Kubernetes container runtime
// interface (runtime.v1) to containerd, which calls the CNI plugins of the network configuration that
// edgewayd wrote. The test is the story of two such nodes. It never runs a kubelet.
//
//	test --CRI--> containerd --CNI--> edgeway, portmap, bandwidth
//	                  |                  |
//	                 runc             edgewayd
//
//	go test ./scripts/cri    # as root, after make build
package cri
