package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Delegation to another IPAM plugin (SPEC 1.1.0 section 4): it is executed with the same input. The
// library's pkg/invoke does the same, but its net/http and OpenTelemetry cost each pod start a
// millisecond.

// outputGrace is how long a killed plugin's children may keep its pipes open.
const outputGrace = time.Second

// delegateAdd asks the other plugin for addresses. If that fails, it calls DEL, as section 4 demands.
func (n *Node) delegateAdd(ctx context.Context, rq request) (g grant, err error) {
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			_ = n.delegate(ctx, rq, "DEL")
		}
	}()
	out, err := n.execute(ctx, rq, "ADD")
	if err != nil {
		return g, err
	}
	result, err := conf{CNIVersion: rq.conf.CNIVersion, PrevResult: out}.previous()
	if err != nil || result == nil {
		return g, fault(codeDelegate, "ipam plugin %s: its result is not usable: %.200q", rq.conf.IPAM.Type, out).next("the plugin must answer in cniVersion %s", rq.conf.CNIVersion)
	}
	return rq.conf.granted(result)
}

func (c conf) granted(result *current.Result) (g grant, err error) {
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		g.addrs = append(g.addrs, a.Unmap())
		bits, _ := ip.Address.Mask.Size()
		g.networks = append(g.networks, netip.PrefixFrom(a.Unmap(), bits).Masked())
	}
	if len(g.addrs) == 0 {
		return g, fault(codeDelegate, "ipam plugin %s gave no address", c.IPAM.Type).next("check its configuration below ipam")
	}
	var asked []podRoute
	for _, r := range result.Routes {
		dst, _ := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		route := podRoute{
			dst: netip.PrefixFrom(dst.Unmap(), bits), mtu: r.MTU, advMSS: r.AdvMSS, priority: r.Priority, table: r.Table, scope: r.Scope,
		}
		if via, ok := netip.AddrFromSlice(r.GW); ok {
			route.via = via.Unmap()
		}
		asked = append(asked, route)
	}
	g.routes, g.dns = podRoutes(asked, g.addrs), result.DNS
	if !c.DNS.IsEmpty() {
		g.dns = c.DNS
	}
	return g, nil
}

// delegate passes on a verb that has no result.
func (n *Node) delegate(ctx context.Context, rq request, command string) error {
	_, err := n.execute(ctx, rq, command)
	return err
}

// execute runs the IPAM plugin and returns its standard output, or the plugin's error.
func (n *Node) execute(ctx context.Context, rq request, command string) ([]byte, error) {
	path, err := findPlugin(rq.conf.IPAM.Type, rq.cni.Path)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = bytes.NewReader(rq.cni.Stdin), &stdout, &stderr, outputGrace
	if n.stderr != nil {
		cmd.Stderr = io.MultiWriter(&stderr, n.stderr)
	}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CNI_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "CNI_COMMAND="+command, "CNI_CONTAINERID="+rq.cni.ContainerID, "CNI_NETNS="+rq.cni.Netns,
		"CNI_IFNAME="+rq.cni.IfName, "CNI_ARGS="+rq.cni.Args, "CNI_PATH="+rq.cni.Path)
	err = cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fault(codeTryAgain, "ipam plugin %s %s: %w", rq.conf.IPAM.Type, command, context.Cause(ctx)).next("check why the ipam plugin does not end, then try again")
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		e := fault(said.Code, "ipam plugin %s: %s", rq.conf.IPAM.Type, said.Msg).next("%s", said.Details)
		e.said = true
		return nil, e
	}
	return nil, fault(codeDelegate, "ipam plugin %s %s: %w: %.300q", rq.conf.IPAM.Type, command, err, stdout.String()+stderr.String()).next("run %s by hand", path)
}

func findPlugin(name, paths string) (string, error) {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return "", fault(codeConfig, "ipam: type %q is not the name of a plugin", name).next("name an executable in CNI_PATH")
	}
	if paths == "" {
		return "", fault(codeEnvironment, "CNI_PATH is not set").next("the runtime must say where the ipam plugin %s is", name)
	}
	var errs []error
	for _, dir := range filepath.SplitList(paths) {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
		if err == nil {
			err = fmt.Errorf("%s is not executable", path)
		}
		errs = append(errs, err)
	}
	return "", fault(codeConfig, "ipam: type %q: %w", name, errors.Join(errs...)).next("install the plugin in CNI_PATH, or correct ipam.type")
}
