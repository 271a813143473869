package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// suite runs Kubernetes' own network tests on the nodes of a story, in one mode of the pods' network.
type suite struct {
	mode   string         // a key of pools
	groups []group        // of specs, those of NetworkPolicies last
	focus  *regexp.Regexp // of the names of specs; nil: all of the groups
	procs  int            // parallel processes of ginkgo
	limit  time.Duration  // for the specs of each part: without NetworkPolicies, and with them
	table  table          // where the results go
	failed int            // specs so far, without those of known
}

// choose keeps the groups and specs that two regular expressions select. An empty expression selects all.
func (u *suite) choose(only, focus string) error {
	some, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-groups: %w", err)
	}
	u.groups = slices.DeleteFunc(slices.Clone(groups), func(g group) bool { return !some.MatchString(g.name) })
	if focus != "" {
		if u.focus, err = regexp.Compile(focus); err != nil {
			return fmt.Errorf("-focus: %w", err)
		}
	}
	return nil
}

// in runs the specs in one mode, on a stage of their own.
func (u *suite) in(ctx context.Context, mode string, st *stage, bin string) error {
	u.mode = mode
	if err := u.needs(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "edgeway-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if st.images, err = writeImages(ctx, dir, u.servers()); err != nil {
		return err
	}
	return run(ctx, st, bin, u.play)
}

// needs returns an error that names the programs and tools that only Kubernetes' own tests need.
func (u *suite) needs() error {
	if pools[u.mode] == "" {
		return fmt.Errorf("-upstream %s: want underlay, overlay or mixed", u.mode)
	}
	programs := append([]string{"e2e.test", "ginkgo", "agnhost", "regression-issue-74839"}, slices.Collect(maps.Values(u.servers()))...)
	if all := kube.Missing(programs...); len(all) > 0 {
		return fmt.Errorf("not in %s: %s; run scripts/kube/build.sh %[2]s", kube.Dir(), strings.Join(all, " "))
	}
	if all := lab.Missing(imageTools...); len(all) > 0 {
		return fmt.Errorf("not installed: %s; run scripts/install-test-tools.sh", strings.Join(all, ", "))
	}
	return nil
}

// servers are the images of the cluster's servers, each with its program.
func (u *suite) servers() map[string]string {
	servers := map[string]string{dnsImage: "coredns"}
	if slices.ContainsFunc(u.groups, func(g group) bool { return g.policies }) {
		servers[policiesImage] = "netpol"
	}
	return servers
}

// play makes a cluster with the pools of the mode and runs the groups. A spec that fails is counted and does not stop
// the run: the table has it. An error is what kept the specs from running.
func (u *suite) play(ctx context.Context, s *story) error {
	if err := s.admit(); err != nil {
		return err
	}
	if err := s.control.ApplyText(pools[u.mode] + "---" + bgpPeer); err != nil {
		return err
	}
	if err := s.each(ctx, (*node).Start); err != nil {
		return err
	}
	if err := s.waitNodes(ctx); err != nil {
		return err
	}
	if err := s.control.ApplyText(clusterDNS); err != nil {
		return err
	}
	if err := s.waitSystem("deployment/coredns", "daemonset/edgewayd"); err != nil {
		return err
	}
	s.pass("%s: %d nodes are Ready, and CoreDNS", u.mode, len(s.nodes))

	plain, policies := u.groups, []group(nil)
	if i := slices.IndexFunc(u.groups, func(g group) bool { return g.policies }); i >= 0 {
		plain, policies = u.groups[:i], u.groups[i:]
	}
	if err := u.run(ctx, s, plain); err != nil || len(policies) == 0 {
		return err
	}
	if err := u.enforce(ctx, s); err != nil {
		return err
	}
	return u.run(ctx, s, policies)
}

// waitSystem waits until workloads of the namespace kube-system are rolled out.
func (s *story) waitSystem(names ...string) error {
	for _, name := range names {
		if _, err := s.control.Kubectl("-n", "kube-system", "rollout", "status", name, "--timeout=110s"); err != nil {
			return err
		}
	}
	return nil
}

// enforce deploys the agent that enforces NetworkPolicies as the overlay does. On a kernel without nft_queue the
// agent cannot write its own rules, so each node gets rules of xtables that ask the agent about the same packets,
// and about those of other pods, which the agent accepts.
func (u *suite) enforce(ctx context.Context, s *story) error {
	overlay := filepath.Join(filepath.Dir(s.deploy), "overlays", "networkpolicy")
	if _, err := s.control.Kubectl("apply", "-k", overlay); err != nil {
		return err
	}
	if err := s.waitSystem("daemonset/kube-network-policies"); err != nil {
		return err
	}
	rules := "its own rules"
	for _, n := range s.nodes {
		if _, err := n.Run(ctx, "nft", "add table inet try; add chain inet try queue; add rule inet try queue queue num 98; delete table inet try"); err == nil {
			continue
		}
		rules = "rules of xtables, because the kernel has no nft_queue"
		for family, specific := range map[string]string{"iptables": "", "ip6tables": "-A POSTROUTING -p icmpv6 -j ACCEPT\n"} {
			file := n.file(family + ".rules")
			if err := os.WriteFile(file, []byte(strings.Replace(queueRules, "SPECIFIC\n", specific, 1)), 0o644); err != nil {
				return err
			}
			if _, err := n.Run(ctx, family+"-restore", "--noflush", file); err != nil {
				return err
			}
		}
	}
	s.pass("%s: kube-network-policies runs, with %s", u.mode, rules)
	return nil
}

// run runs groups of specs, stores their results and writes the table.
func (u *suite) run(ctx context.Context, s *story, groups []group) error {
	if len(groups) == 0 {
		return nil
	}
	dir := filepath.Join(s.lab.Dir, "ginkgo-"+strings.ReplaceAll(groups[0].name, " ", ""))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	report := filepath.Join(dir, "report.json")
	if err := u.ginkgo(ctx, s, groups, dir); err != nil {
		return err
	}
	text, err := os.ReadFile(report)
	if err != nil {
		return fmt.Errorf("ginkgo wrote no report: %w\n%s", err, lab.Tail(filepath.Join(dir, "ginkgo.log"), 20))
	}
	specs, err := parseReport(text)
	if err != nil {
		return err
	}
	ran := false
	for _, g := range groups {
		r := g.result(specs)
		r.Mode = u.mode
		for i := range r.Specs {
			r.Specs[i].Date = time.Now().UTC().Format(time.DateOnly)
		}
		if len(r.of(passed))+len(r.of(failed)) == 0 {
			continue // none of its specs was chosen, or ginkgo's order is random and the time was over
		}
		ran = true
		verdict := "PASS"
		for _, f := range r.of(failed) {
			if why(f) == f.Reason {
				verdict = "FAIL"
				u.failed++
			}
		}
		s.say(verdict, "%s: %s: %d passed, %d failed, %d skipped, %d not run", u.mode, g.name, len(r.of(passed)), len(r.of(failed)), len(r.of(skipped)), len(r.of(missed)))
		for _, spec := range slices.Concat(r.of(failed), r.of(skipped)) {
			show(spec.Name + ": " + spec.Reason)
		}
		if err := u.table.store(r); err != nil {
			return err
		}
		if len(r.of(failed)) > 0 {
			kept, err := s.keepLogs()
			if err != nil {
				return err
			}
			fmt.Println("the log of ginkgo and of all programs is in", kept)
		}
	}
	if !ran {
		return fmt.Errorf("ginkgo ran no spec\n%s", lab.Tail(filepath.Join(dir, "ginkgo.log"), 20))
	}
	return nil
}

// ginkgo runs the specs in the control plane's network namespace. The exit status says nothing that the report
// does not.
func (u *suite) ginkgo(ctx context.Context, s *story, groups []group, dir string) error {
	argv := []string{kube.Program("ginkgo"), "run", fmt.Sprintf("--procs=%d", u.procs), fmt.Sprintf("--timeout=%v", u.limit), "--no-color", "--silence-skips", "--succinct",
		"--keep-going", "--output-dir=" + dir, "--json-report=report.json", "--poll-progress-after=0"}
	if u.focus != nil {
		argv = append(argv, "--focus="+u.focus.String())
	} else {
		for _, g := range groups {
			argv = append(argv, "--focus="+g.pattern.String())
		}
	}
	for _, e := range excluded() {
		argv = append(argv, "--skip="+e.pattern.String())
	}
	argv = append(argv, kube.Program("e2e.test"), "--", "--kubeconfig="+s.control.AdminKubeconfig(), "--kubectl-path="+kube.Program("kubectl"),
		"--provider=skeleton", fmt.Sprintf("--num-nodes=%d", len(s.nodes)), "--dump-logs-on-failure=true", "--e2e-output-dir="+dir)
	log := filepath.Join(dir, "ginkgo.log")
	p, err := lab.Program{Argv: argv, Log: log, Dir: dir, Space: s.vpc.Space}.Start()
	if err != nil {
		return err
	}
	stopped := errors.New("ginkgo still runs")
	err = lab.Wait(ctx, u.limit+ginkgoGrace, func() error {
		if p.Err() != nil {
			return nil
		}
		return stopped
	})
	if err != nil { // interrupted or hanging: its parallel processes are in its process group
		err = errors.Join(fmt.Errorf("%w\n%s", err, lab.Tail(log, 20)), syscall.Kill(-p.PID(), syscall.SIGKILL), p.Kill())
	}
	return err
}

// ginkgoGrace is the time in which ginkgo has to end its specs and to write its report after its own time limit.
const ginkgoGrace = 3 * time.Minute
