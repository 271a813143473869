// Package plugin is the CNI verbs as a library: one attachment on this node. The daemon runs the verbs;
// the plugin's executable runs them itself when no daemon answers.
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
// Both ends know each other's MAC from the start, so no first packet waits for ARP and no ARP is sent
// before there is traffic. A pod whose MAC changes later announces the new MAC, and the host's entries
// follow. If the pod did not announce it, the host asks within five seconds of traffic. The host's end
// answers for the pod's next hop, since the pod must ask for it once its MAC has changed.
//
// Only the lease is remembered. The host end's name and both MACs are functions of the attachment; the
// rest is read from the kernel.
package plugin

import (
	"context"
	"os"
	"path/filepath"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// Call is one CNI invocation.
type Call struct {
	api.CNI
	NetnsFile *os.File // open network namespace; nil when the runtime gave no namespace
	unopened  error    // why NetnsFile is nil although the runtime named a namespace
}

// Do runs one verb and returns the bytes for standard output. It never writes anywhere itself.
//
// The end of ctx undoes an ADD and stops a CHECK or STATUS. A DEL or GC that has started is completed,
// since half of one helps nobody. The Undelivered of an ADD's reply undoes the ADD, unless the attachment
// was made again since.
func (n *Node) Do(ctx context.Context, call Call) api.Reply {
	err := n.open()
	if err != nil {
		return errorReply("", err)
	}
	op, err := plan(call, n.home)
	if err != nil {
		return errorReply(op.version, err)
	}
	return n.run(ctx, op)
}

func (n *Node) run(ctx context.Context, op operation) api.Reply {
	limit := verbTimeout
	if op.cni.Command == "STATUS" {
		limit = statusPatience
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	reply, err := api.Reply{}, n.agrees(op.request)
	if err == nil {
		reply, err = op.step(n, ctx)
	}
	if err != nil {
		return errorReply(op.version, unavailable(op.cni.Command, err))
	}
	return reply
}

// agrees refuses a configuration that names another store: without the daemon the call would use that
// store, and one pool would be leased twice. DEL and CHECK are still served here, for what was made here.
func (n *Node) agrees(rq request) error {
	switch dir := filepath.Clean(rq.conf.dataDir()); {
	case n.Dir == "" || dir == n.Dir || rq.conf.delegated():
		return nil
	case rq.cni.Command == "ADD" || rq.cni.Command == "GC" || rq.cni.Command == "STATUS":
		return fault(codeConfig, "dataDir is %s, but the daemon on %s keeps its leases in %s", dir, rq.conf.socket(), n.Dir).
			next("set dataDir to %s, or name the socket of another daemon", n.Dir)
	}
	return nil
}

// operation is a call that was parsed and checked completely. Nothing was changed yet.
type operation struct {
	request
	version string // version of the answer; "" when the input's version is not usable
	step    step
}

type step func(*Node, context.Context) (api.Reply, error)

// plan parses and checks a call. home is the host's network namespace. The operation has the version of
// the answer even if plan returns an error.
func plan(call Call, home *os.File) (op operation, err error) {
	op.cni, op.netns = call.CNI, call.NetnsFile
	op.attachment = ipam.Attachment{ContainerID: call.ContainerID, IfName: call.IfName}
	if call.Command == "VERSION" {
		op.version, op.step, err = probeVersion(call.Stdin)
		return op, err
	}
	verb, ok := verbs[call.Command]
	if !ok {
		return op, badCommand(call.Command)
	}
	op.conf, err = parseConf(call.Stdin)
	op.version = op.conf.answerVersion()
	if err != nil {
		return op, err
	}
	if call.Socket != "" && (call.Socket != op.conf.socket() || op.conf.delegated()) {
		// A delegated IPAM plugin must run where the runtime's paths are valid.
		refusal := "the caller must read the network configuration itself: it names socket " + op.conf.socket() + " and ipam " + op.conf.IPAM.Type
		op.step = func(*Node, context.Context) (api.Reply, error) { return api.Reply{Error: refusal}, nil }
		return op, nil
	}
	if err := verb.admits(op.request); err != nil {
		return op, err
	}
	if op.step, err = verb.plan(op.request); err != nil {
		return op, err
	}
	if verb.netns && !op.conf.ipamOnly() {
		if call.unopened != nil {
			return op, call.unopened
		}
		return op, checkNetns(op.request, home)
	}
	return op, nil
}

// request is one call with its configuration parsed.
type request struct {
	conf       conf
	cni        api.CNI
	attachment ipam.Attachment
	netns      *os.File
}

// verb is one CNI operation (SPEC 1.1.0 section 2): its demands and its plan.
type verb struct {
	since      string // the first protocol version with this verb
	attachment bool   // needs CNI_CONTAINERID and CNI_IFNAME
	netns      bool   // needs CNI_NETNS
	plan       func(request) (step, error)
}

// verbs is read-only.
var verbs = map[string]verb{
	"ADD":    {since: "0.1.0", attachment: true, netns: true, plan: planAdd},
	"DEL":    {since: "0.1.0", attachment: true, plan: planDel},
	"CHECK":  {since: "0.4.0", attachment: true, netns: true, plan: planCheck},
	"GC":     {since: "1.1.0", plan: planGC},
	"STATUS": {since: "1.1.0", plan: planStatus},
}

// admits checks the verb's demands on version and environment.
func (v verb) admits(rq request) error {
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
	return nil
}
