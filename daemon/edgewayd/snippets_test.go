package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
)

// readPages returns the text of every page for readers, by path.
func readPages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	out := map[string]string{}
	for _, file := range append(files, "../../README.md", "../../CONTRIBUTING.md", "../../CHANGELOG.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[file] = string(text)
	}
	return out
}

// others are the programs that the bash blocks of the pages call beside edgewayd, each with its flags. k3s cannot
// be had here: its flags follow its documentation.
var others = map[string]string{
	"kubeadm":      "--pod-network-cidr --token --discovery-token-ca-cert-hash",
	"sh":           "-s - --flannel-backend --disable-network-policy --cluster-cidr", // k3s, by its installer
	"firewall-cmd": "--permanent --zone --add-source --new-policy --policy --add-ingress-zone --add-egress-zone --set-target --add-port --reload",
	"kubectl":      "-n -k -f -o -- --for --all --timeout",
	"ctr":          "-n",
	"systemctl":    "--now",
	"ping":         "-c -M -s",
	"tcpdump":      "-ni",
	"sed":          "-i",
	"sysctl":       "-p -w",
	"iptables":     "-S -I -i -o -j",
	"ufw":          "",
	"curl":         "-sfL",
	"ls":           "-l",
	"ln":           "-s",
	"mkdir":        "-p",
	"dpkg":         "-i",
	"rsync":        "-a --delete",
	"cp":           "-a",
	"rm":           "-f",
	"install":      "-d -m",
	"apt-get":      "", "cat": "", "done": "", "echo": "", "export": "", "for": "", "ip": "", "nft": "", "/opt/cni/bin/edgeway": "",
}

// Every command in the text and in the bash blocks of the pages exists, with its flags. A bash block is for real
// nodes; an sh block is run, see TestPagesRun.
func TestPagesNameCommandsThatExist(t *testing.T) {
	blocks := regexp.MustCompile("(?s)\n```bash\n(.*?)```\n")
	inline := regexp.MustCompile("`(edgewayd [^`\n]+)`")
	comment := regexp.MustCompile(`(^|\s)#.*`)
	before := regexp.MustCompile(`^(do |k3s |[A-Z_0-9]+=\S*\s+)+`) // the command itself
	count := 0
	for path, text := range readPages(t) {
		var commands []string
		for _, m := range inline.FindAllStringSubmatch(text, -1) {
			commands = append(commands, m[1])
		}
		for _, b := range blocks.FindAllStringSubmatch(text, -1) {
			for line := range strings.Lines(b[1]) {
				for _, c := range regexp.MustCompile(`\||;|&&`).Split(comment.ReplaceAllString(line, ""), -1) {
					commands = append(commands, before.ReplaceAllString(strings.TrimSpace(c), ""))
				}
			}
		}
		if path == "../../CHANGELOG.md" {
			continue // names commands that are gone
		}
		for _, c := range commands {
			words := strings.Fields(c)
			if len(words) == 0 || strings.ContainsAny(words[0], `'"(`) { // the rest of a quoted word
				continue
			}
			count++
			if i := slices.Index(words, "/edgewayd"); i > 0 { // in the DaemonSet's pod
				isCommand(t, path, words[i:])
				words = words[:i]
			}
			if words[0] == "edgewayd" {
				isCommand(t, path, words)
				continue
			}
			known, ok := others[words[0]]
			if !ok {
				t.Errorf("%s: %q: the program is not in the list of this test", path, c)
			}
			for _, w := range words[1:] {
				if _, err := os.Stat("../../" + w); strings.HasPrefix(w, "deploy/") && err != nil {
					t.Errorf("%s: %q: %v", path, c, err)
				}
				w, _, _ = strings.Cut(w, "=")
				if strings.HasPrefix(w, "-") && !slices.Contains(strings.Fields(known), w) {
					t.Errorf("%s: %q: %s is not in the list of this test", path, c, w)
				}
			}
		}
	}
	if count < 100 {
		t.Errorf("%d commands: the pages have more", count)
	}
}

// isCommand checks a call of edgewayd. Words in capitals stand for what the reader has.
func isCommand(t *testing.T, path string, words []string) {
	t.Helper()
	words = slices.DeleteFunc(slices.Clone(words[1:]), func(w string) bool { return w == "..." || w == "|" })
	cmd, rest, err := root().Find(words)
	parent := err == nil && cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-")
	if err != nil || parent && rest[0] != "completion" && rest[0] != "help" { // cobra adds these two when it runs
		t.Errorf("%s: edgewayd %s: no such command: %v", path, strings.Join(words, " "), err)
		return
	}
	flags := cmd.Flags()
	flags.AddFlagSet(cmd.InheritedFlags())
	for _, w := range rest {
		name, _, _ := strings.Cut(w, "=")
		var flag *pflag.Flag
		switch {
		case strings.HasPrefix(name, "--"):
			flag = flags.Lookup(strings.TrimPrefix(name, "--"))
		case len(name) == 2 && name[0] == '-':
			flag = flags.ShorthandLookup(name[1:])
		default:
			continue
		}
		if flag == nil && name != "--help" {
			t.Errorf("%s: edgewayd %s: no flag %s", path, strings.Join(words, " "), name)
		}
	}
}

// Every yaml block of the pages is one that edgeway accepts: a manifest, or a configuration. Of other kinds, such as a
// Pod, only the head is looked at.
func TestSnippetsOfPagesLoad(t *testing.T) {
	blocks := regexp.MustCompile("(?s)\n```yaml\n(.*?)```\n")
	count := 0
	for path, text := range readPages(t) {
		for _, b := range blocks.FindAllStringSubmatch(text, -1) {
			count++
			var head struct {
				APIVersion string `yaml:"apiVersion"`
				Kind       string
				Metadata   struct{ Name string }
			}
			switch err := yaml.Unmarshal([]byte(b[1]), &head); {
			case err != nil:
				t.Errorf("%s: %v in\n%s", path, err, b[1])
			case head.Kind == "Pod":
				if head.APIVersion != "v1" || head.Metadata.Name == "" {
					t.Errorf("%s: not a Pod:\n%s", path, b[1])
				}
			case head.Kind != "":
				w, err := cluster.ParseManifest(path, []byte(b[1]))
				if err != nil || len(w.Problems) > 0 || len(w.Nodes)+len(w.Peerings)+len(w.Pools)+len(w.EdgeNodes)+len(w.Secrets) == 0 {
					t.Errorf("%s: %v %v in\n%s", path, err, w.Problems, b[1])
				}
			default:
				if _, err := config.Parse([]byte(b[1])); err != nil {
					t.Errorf("%s: %v in\n%s", path, err, b[1])
				}
			}
		}
	}
	if count < 4 {
		t.Errorf("%d snippets: the pages have more", count)
	}
}

// Every picture is well-formed.
func TestPicturesOfPages(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.svg")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var picture struct {
			XMLName xml.Name
			Texts   []string `xml:"text"`
		}
		if err := xml.Unmarshal(text, &picture); err != nil || picture.XMLName.Local != "svg" || len(picture.Texts) == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Every link of a page leads to a file of the source, and to a heading of it.
func TestLinksOfPages(t *testing.T) {
	pages := readPages(t)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	anchors := func(text string) (out []string) {
		for _, m := range heading.FindAllStringSubmatch(text, -1) {
			anchor := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
			out = append(out, strings.ReplaceAll(anchor, " ", "-"))
		}
		return out
	}
	for path, text := range pages {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			link, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(link, "://") {
				continue
			}
			to := path
			if link != "" {
				to = filepath.Join(filepath.Dir(path), link)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s: %v", path, m[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(pages[to]), anchor) {
				t.Errorf("%s: %s: no such heading; there are %q", path, m[1], anchors(pages[to]))
			}
		}
	}
}
