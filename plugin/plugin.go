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
//	eth0  10.10.1.2/32  fd00::2/128       ew81f3a2c04d5   no address
//	default via 169.254.1.1, fe80::1 ---> 10.10.1.2, fd00::2 dev ew81f3a2c04d5 proto 101
//	neighbours 169.254.1.1, fe80::1       neighbours 10.10.1.2, fd00::2
//	  permanent, to the host end's MAC      permanent, to the pod end's MAC
//
// Nothing but the lease is remembered: the host end's name and both MACs are functions of the
// attachment, the rest is read from the kernel.
package plugin

import (
	"context"
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
	if err := verb.admits(call.CNI, c); err != nil {
		return version, reply, err
	}
	if err := n.open(); err != nil {
		return version, reply, err
	}
	ctx, cancel := context.WithTimeout(ctx, verbTimeout)
	defer cancel()
	reply, err = verb.run(n, ctx, request{
		conf:       c,
		cni:        call.CNI,
		attachment: ipam.Attachment{ContainerID: call.ContainerID, IfName: call.IfName},
		netns:      call.NetnsFile,
	})
	return version, reply, err
}

// request is one call with its configuration parsed.
type request struct {
	conf       conf
	cni        api.CNI
	attachment ipam.Attachment
	netns      *os.File
}

// verb is one CNI operation (SPEC 1.1.0 section 2): what it demands and what it does.
type verb struct {
	since      string // the first protocol version that has it
	attachment bool   // needs CNI_CONTAINERID and CNI_IFNAME
	netns      bool   // needs CNI_NETNS
	run        func(*Node, context.Context, request) (api.Reply, error)
}

// verbs is never written to.
var verbs = map[string]verb{
	"ADD":    {since: "0.1.0", attachment: true, netns: true, run: (*Node).add},
	"DEL":    {since: "0.1.0", attachment: true, run: (*Node).del},
	"CHECK":  {since: "0.4.0", attachment: true, netns: true, run: (*Node).check},
	"GC":     {since: "1.1.0", run: (*Node).gc},
	"STATUS": {since: "1.1.0", run: (*Node).status},
}

// admits checks the environment against what the verb demands.
func (v verb) admits(cni api.CNI, c conf) error {
	if versionIndex(c.CNIVersion) < versionIndex(v.since) {
		return fault(codeVersion, "%s is part of cniVersion %s and later, the configuration says %q", cni.Command, v.since, c.CNIVersion).
			next("raise cniVersion in the network configuration")
	}
	if v.attachment {
		if err := checkContainerID(cni.ContainerID); err != nil {
			return err
		}
		if err := checkIfName(cni.IfName); err != nil {
			return err
		}
	}
	if v.netns && cni.Netns == "" {
		return fault(codeEnvironment, "CNI_NETNS is not set").next("%s needs the path of the container's network namespace", cni.Command)
	}
	return nil
}
