// Package plugin is the CNI verbs as a library: one attachment on this node. The plugin's
// executable runs them itself when no daemon answers; the daemon runs the same ones for it.
//
//	node := plugin.Node{Store: store}
//	reply := node.Do(ctx, plugin.Call{CNI: req, NetnsFile: netns})
//	os.Stdout.Write(reply.Output)
//
// An attachment is a veth pair and a lease:
//
//	pod's namespace                       host's namespace
//	eth0  10.10.1.2/32  fd00::2/128       ew81f3a2c04d5  169.254.1.1/32 scope host, fe80::1
//	default via 169.254.1.1, fe80::1 ---> 10.10.1.2, fd00::2 dev ew81f3a2c04d5 proto 101
//	neighbours 169.254.1.1, fe80::1       neighbours 10.10.1.2, fd00::2
//	  permanent, to the host end's MAC      filled in, to the pod end's MAC; they learn
//
// Both ends know each other's MAC from the start: no first packet waits for ARP, and none is sent
// before one is under way. A pod whose MAC changes later announces the new one, and the host's
// entries follow; one that did not is asked within five seconds of traffic. The host's end answers
// for the pod's next hop, which the pod has to ask for once its MAC has changed.
//
// Nothing but the lease is remembered: the host end's name and both MACs are functions of the
// attachment, the rest is read from the kernel.
package plugin

import (
	"context"
	"errors"
	"os"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// Call is one CNI invocation.
type Call struct {
	api.CNI
	NetnsFile *os.File // open network namespace; nil when the runtime gave none
}

// Do runs one verb and returns what belongs on standard output. It never writes anywhere itself.
//
// The end of ctx undoes an ADD and stops a CHECK or STATUS; a DEL or GC that has begun is carried
// through, since half of one helps nobody. The Undelivered of an ADD's reply undoes it, unless
// the attachment was made anew since.
func (n *Node) Do(ctx context.Context, call Call) api.Reply {
	version, out, err := n.do(ctx, call)
	if err != nil {
		return errorReply(version, err)
	}
	return out
}

// do returns the protocol version to answer in, also beside an error.
func (n *Node) do(ctx context.Context, call Call) (version string, reply api.Reply, err error) {
	if call.Command == "VERSION" {
		return probeVersion(call.Stdin)
	}
	verb, ok := verbs[call.Command]
	if !ok {
		return "", reply, badCommand(call.Command)
	}
	c, err := parseConf(call.Stdin)
	version = c.answerVersion()
	if err != nil {
		return version, reply, err
	}
	if call.Socket != "" && (call.Socket != c.socket() || c.delegated()) {
		// A delegated IPAM plugin is executed where the runtime's paths are true.
		return version, api.Reply{Error: "the caller must read the network configuration itself: it names socket " + c.socket() + " and ipam " + c.IPAM.Type}, nil
	}
	if err := n.open(); err != nil {
		return version, reply, err
	}
	rq := newRequest(call, c)
	if err := verb.admits(rq, n.home); err != nil {
		return version, reply, err
	}
	ctx, cancel := context.WithTimeout(ctx, verbTimeout)
	defer cancel()
	reply, err = verb.run(n, ctx, rq)
	return version, reply, unavailable(call.Command, err)
}

// request is one call with its configuration parsed.
type request struct {
	conf       conf
	cni        api.CNI
	attachment ipam.Attachment
	netns      *os.File
}

func newRequest(call Call, c conf) request {
	return request{
		conf: c, cni: call.CNI, netns: call.NetnsFile,
		attachment: ipam.Attachment{ContainerID: call.ContainerID, IfName: call.IfName},
	}
}

// verb is one CNI operation (SPEC 1.1.0 section 2): what it demands and what it does.
type verb struct {
	since      string // the first protocol version that has it
	attachment bool   // needs CNI_CONTAINERID and CNI_IFNAME
	netns      bool   // needs CNI_NETNS
	checks     func(request) error
	run        func(*Node, context.Context, request) (api.Reply, error)
}

// verbs is never written to.
var verbs = map[string]verb{
	"ADD":    {since: "0.1.0", attachment: true, netns: true, checks: addable, run: (*Node).add},
	"DEL":    {since: "0.1.0", attachment: true, run: (*Node).del},
	"CHECK":  {since: "0.4.0", attachment: true, netns: true, checks: checkable, run: (*Node).check},
	"GC":     {since: "1.1.0", checks: collectable, run: (*Node).gc},
	"STATUS": {since: "1.1.0", run: (*Node).status},
}

// admits checks all that can be checked without touching anything. home is the host's network
// namespace.
func (v verb) admits(rq request, home *os.File) error {
	if versionIndex(rq.conf.CNIVersion) < versionIndex(v.since) {
		return fault(codeVersion, "%s is part of cniVersion %s and later, the configuration says %q", rq.cni.Command, v.since, rq.conf.CNIVersion).
			next("raise cniVersion in the network configuration")
	}
	if v.attachment {
		if err := checkContainerID(rq.cni.ContainerID); err != nil {
			return err
		}
		if err := checkIfName(rq.cni.IfName); err != nil {
			return err
		}
	}
	if v.netns && rq.cni.Netns == "" {
		return fault(codeEnvironment, "CNI_NETNS is not set").next("%s needs the path of the container's network namespace", rq.cni.Command)
	}
	if v.checks != nil {
		if err := v.checks(rq); err != nil {
			return err
		}
	}
	if v.netns && !rq.conf.ipamOnly() {
		return checkNetns(rq, home)
	}
	return nil
}

// addable, checkable and collectable check what their verbs read of the configuration.
func addable(rq request) error {
	_, oerr := newOrder(rq)
	_, perr := rq.conf.previous()
	return errors.Join(oerr, perr)
}

func checkable(rq request) error {
	previous, err := rq.conf.previous()
	if err == nil && previous == nil {
		return fault(codeConfig, "CHECK without prevResult").next("the runtime must pass the result of ADD as prevResult")
	}
	return err
}

func collectable(rq request) error {
	_, _, err := rq.conf.valid()
	return err
}
