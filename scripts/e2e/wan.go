package main

import (
	"context"
	"fmt"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// noticeLimit is for a client to see that a connection leads nowhere, or that it does again.
const noticeLimit = 3 * time.Minute

// newNode9 is a node that comes while the WAN is cut. No kubelet runs it, and pods of workloads
// stay away.
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

// cut drops every packet between the nodes and the control plane silently: connections stay open at
// both ends.
const cut = `table inet wan_is_cut {
	chain forward {
		type filter hook forward priority 0
		iifname wan drop
		oifname wan drop
	}
}`

// wanIsCut: the control plane runs on, but no packet reaches it. The daemons notice, lose nothing,
// and learn the changes of that time soon after the packets flow again.
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
	s.pass("the WAN drops every packet: all daemons say so after %.1f s", time.Since(begin).Seconds())
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
	s.pass("meanwhile %d pings between pods, and from the switch: none lost", sent)

	if _, err := s.switchA.Run(ctx, "nft", "delete table inet wan_is_cut"); err != nil {
		return err
	}
	begin = time.Now()
	if err := s.wantLearned(ctx, noticeLimit); err != nil {
		return err
	}
	s.pass("the packets flow again: the switch has the route to node-9, which came meanwhile, after %.1f s", time.Since(begin).Seconds())
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

// waitProblem waits until a node's daemon has one problem, for this reason, or none when it is "".
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
