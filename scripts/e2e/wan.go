package main

import (
	"context"
	"fmt"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// noticeLimit bounds the time in which a client notices that a connection is dead, or that it works again.
const noticeLimit = 3 * time.Minute

// newNode9 is a node that joins while the WAN is cut. It has no kubelet, and its taint keeps the pods of
// workloads away.
const newNode9 = `
apiVersion: v1
kind: Node
metadata:
  name: node-9
  labels: {alibabacloud.com/nodepool-id: npxxx}
spec:
  taints: [{key: edgeway.test/empty, effect: NoSchedule}]
status:
  addresses: [{type: InternalIP, address: 172.16.0.19}, {type: InternalIP, address: "fd00:172::19"}]
`

// cut silently drops every packet between the nodes and the control plane. Connections stay open at both
// ends.
const cut = `table inet wan_is_cut {
	chain forward {
		type filter hook forward priority 0
		iifname wan drop
		oifname wan drop
	}
}`

// wanIsCut: the control plane keeps running, but no packet reaches it. The daemons notice, lose nothing,
// and learn the missed changes soon after packets flow again.
func (s *story) wanIsCut(ctx context.Context) error {
	flows, err := s.startFlows(ctx, "", pingLong)
	if err != nil {
		return err
	}
	if _, err := s.switchA.Run(ctx, "nft", cut); err != nil {
		return err
	}
	begin := time.Now()
	for _, n := range s.nodes {
		if err := s.waitProblem(ctx, n, "apiServerUnreachable"); err != nil {
			return err
		}
	}
	s.pass("the WAN drops every packet: all daemons report it after %.1f s", time.Since(begin).Seconds())
	if err := s.control.ApplyText(newNode9); err != nil {
		return err
	}
	if _, err := s.control.Kubectl("wait", "--for=jsonpath={.spec.podCIDRs[1]}", "--timeout=60s", "node/node-9"); err != nil {
		return err
	}
	sent, err := stopFlows(flows)
	if err != nil {
		return err
	}
	s.pass("none of %d pings between pods and from the switch is lost meanwhile", sent)

	if _, err := s.switchA.Run(ctx, "nft", "delete table inet wan_is_cut"); err != nil {
		return err
	}
	begin = time.Now()
	if err := s.wantLearned(ctx, noticeLimit); err != nil {
		return err
	}
	s.pass("the packets flow again: the switch has the route to node-9, which joined meanwhile, after %.1f s", time.Since(begin).Seconds())
	for _, n := range s.nodes {
		if err := s.waitProblem(ctx, n, ""); err != nil {
			return err
		}
	}
	s.pass("no daemon has a problem any more, after %.1f s", time.Since(begin).Seconds())
	if _, err := s.control.Kubectl("delete", "node", "node-9"); err != nil {
		return err
	}
	begin = time.Now()
	if err := s.wantLearned(ctx, routeLimit); err != nil {
		return err
	}
	s.pass("node-9 is deleted: its routes are gone after %.1f s", time.Since(begin).Seconds())
	return s.waitNodes(ctx)
}

// waitProblem waits until a node's daemon reports exactly one problem, with this reason, or no problem if
// reason is "".
func (s *story) waitProblem(ctx context.Context, n *node, reason string) error {
	return lab.Wait(ctx, noticeLimit, func() error {
		status, err := n.status(ctx)
		if err != nil {
			return err
		}
		var got string
		for _, p := range status.Problems {
			got += p.Reason
		}
		if got != reason {
			return fmt.Errorf("%s: problems %+v, want %q", n.Name, status.Problems, reason)
		}
		return nil
	})
}
