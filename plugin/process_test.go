package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// run runs the executable's code in this process.
func run(t *testing.T, env map[string]string, stdin io.Reader) (stdout string, status int) {
	t.Helper()
	var out bytes.Buffer
	status = Process{Getenv: func(k string) string { return env[k] }, Stdin: stdin, Stdout: &out}.Run(t.Context())
	return out.String(), status
}

// What the environment and standard input get wrong is named, with a code of the SPEC, and
// nothing is touched.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/proc/self/ns/uts", "CNI_IFNAME": "eth0"}
	conf := func(keys string) string {
		return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"edgeway","dataDir":%q,"socket":%q%s}`, filepath.Join(dir, "state"), filepath.Join(dir, "sock"), keys)
	}
	const ranges = `,"ipam":{"ranges":[[{"subnet":"10.1.0.0/24"}]]}`
	for _, tt := range []struct {
		name  string
		env   map[string]string
		stdin string
		code  uint
		want  string // in msg and details
	}{
		{"no command", map[string]string{"CNI_COMMAND": ""}, conf(""), 4, "CNI_COMMAND is not set"},
		{"unknown command", map[string]string{"CNI_COMMAND": "add"}, conf(""), 4, `CNI_COMMAND "add"`},
		{"no container", map[string]string{"CNI_CONTAINERID": ""}, conf(""), 4, "CNI_CONTAINERID is not set"},
		{"container with a slash", map[string]string{"CNI_CONTAINERID": "../x"}, conf(""), 4, `CNI_CONTAINERID "../x"`},
		{"container starts with a dot", map[string]string{"CNI_CONTAINERID": ".x"}, conf(""), 4, "CNI_CONTAINERID"},
		{"no interface", map[string]string{"CNI_IFNAME": ""}, conf(""), 4, "CNI_IFNAME is not set"},
		{"interface of 16 bytes", map[string]string{"CNI_IFNAME": "abcdefghijklmnop"}, conf(""), 4, "CNI_IFNAME"},
		{"interface with a slash", map[string]string{"CNI_IFNAME": "a/b"}, conf(""), 4, "CNI_IFNAME"},
		{"interface with a space", map[string]string{"CNI_IFNAME": "a b"}, conf(""), 4, "CNI_IFNAME"},
		{"interface is a template", map[string]string{"CNI_IFNAME": "eth%d"}, conf(""), 4, `CNI_IFNAME "eth%d"`},
		{"interface is a directory", map[string]string{"CNI_IFNAME": ".."}, conf(""), 4, "CNI_IFNAME"},
		{"no namespace", map[string]string{"CNI_NETNS": ""}, conf(""), 4, "CNI_NETNS is not set"},
		{"relative namespace", map[string]string{"CNI_NETNS": "netns/x"}, conf(""), 4, "CNI_NETNS"},
		{"missing namespace", map[string]string{"CNI_NETNS": dir + "/none"}, conf(""), 3, "CNI_NETNS"},
		{"namespace of another kind", nil, conf(ranges), 4, "CNI_NETNS /proc/self/ns/uts is not a network namespace"},
		{"namespace is a file", map[string]string{"CNI_NETNS": plain}, conf(ranges), 4, "CNI_NETNS"},
		{"namespace is the host's", map[string]string{"CNI_NETNS": "/proc/thread-self/ns/net"}, conf(ranges), 4, "host's own network namespace"},
		{"CHECK without namespace", map[string]string{"CNI_COMMAND": "CHECK", "CNI_NETNS": ""}, conf(""), 4, "CNI_NETNS"},
		{"CHECK without prevResult", map[string]string{"CNI_COMMAND": "CHECK"}, conf(""), 7, "prevResult"},
		{"bad CNI_ARGS", map[string]string{"CNI_ARGS": "IP"}, conf(""), 4, "CNI_ARGS"},
		{"bad IP in CNI_ARGS", map[string]string{"CNI_ARGS": "IgnoreUnknown=1;IP=10.1"}, conf(""), 4, "CNI_ARGS IP"},
		{"bad MAC in CNI_ARGS", map[string]string{"CNI_ARGS": "MAC=01:00:5e:00:00:01"}, conf(""), 4, "CNI_ARGS MAC"},

		{"empty input", nil, "", 5, "standard input is empty"},
		{"blank input", nil, " \n", 5, "standard input is empty"},
		{"broken JSON", nil, `{"cniVersion":`, 6, "decode network configuration"},
		{"two values", nil, conf("") + conf(""), 6, "decode network configuration"},
		{"array", nil, `[]`, 6, "decode network configuration"},
		{"unknown version", nil, `{"cniVersion":"9.9.9","name":"net","type":"edgeway"}`, 1, `cniVersion "9.9.9"`},
		{"version is a number", nil, `{"cniVersion":1,"name":"net","type":"edgeway"}`, 6, "cniVersion"},
		{"no name", nil, `{"cniVersion":"1.1.0","type":"edgeway"}`, 7, "name"},
		{"name with a slash", nil, `{"cniVersion":"1.1.0","name":"a/b","type":"edgeway"}`, 7, "name"},
		{"STATUS in 1.0.0", map[string]string{"CNI_COMMAND": "STATUS"}, `{"cniVersion":"1.0.0","name":"net","type":"edgeway"}`, 1, "STATUS"},
		{"GC in 1.0.0", map[string]string{"CNI_COMMAND": "GC"}, `{"cniVersion":"1.0.0","name":"net","type":"edgeway"}`, 1, "GC"},
		{"CHECK in 0.3.1", map[string]string{"CNI_COMMAND": "CHECK"}, `{"cniVersion":"0.3.1","name":"net","type":"edgeway"}`, 1, "CHECK"},
		{"mtu is text", nil, conf(`,"mtu":"big"`), 6, "mtu"},
		{"mtu is too small", nil, conf(`,"mtu":20`), 7, "mtu 20"},
		{"ipam is text", nil, conf(`,"ipam":"x"`), 6, "ipam"},
		{"subnet is no prefix", nil, conf(`,"ipam":{"subnet":"10.1.0.0"}`), 7, `"10.1.0.0"`},
		{"range outside its subnet", nil, conf(`,"ipam":{"ranges":[[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]]}`), 7, `"10.2.0.1"`},
		{"empty range set", nil, conf(`,"ipam":{"ranges":[[]]}`), 7, "no range"},
		{"range set of both families", nil, conf(`,"ipam":{"ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]}`), 7, ""},
		{"route without prefix", nil, conf(`,"ipam":{"subnet":"10.1.0.0/24","routes":[{"dst":"x"}]}`), 7, `"x"`},
		{"route to the other family", nil, conf(`,"ipam":{"subnet":"10.1.0.0/24","routes":[{"dst":"10.0.0.0/8","gw":"fe80::9"}]}`), 7, "fe80::9"},
		{"route of an unknown scope", nil, conf(`,"ipam":{"subnet":"10.1.0.0/24","routes":[{"dst":"10.0.0.0/8","scope":7}]}`), 7, "scope 7"},
		{"bad requested address", nil, conf(ranges + `,"runtimeConfig":{"ips":["10.1"]}`), 7, "runtimeConfig.ips"},
		{"bad requested MAC", nil, conf(ranges + `,"runtimeConfig":{"mac":"zz"}`), 7, "runtimeConfig.mac"},
		{"bad prevResult", nil, conf(ranges + `,"prevResult":{"ips":7}`), 6, "prevResult"},
		{"prevResult of an unknown version", nil, conf(ranges + `,"prevResult":{"cniVersion":"5.0.0"}`), 6, "prevResult"},
		{"prevResult points nowhere", nil, conf(ranges + `,"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.1/24","interface":3}]}`), 6, "interface 3"},
		{"prevResult with null", nil, conf(ranges + `,"prevResult":{"cniVersion":"0.4.0","interfaces":[null]}`), 6, "null"},
		{"bad GC list", map[string]string{"CNI_COMMAND": "GC"}, conf(`,"cni.dev/valid-attachments":[{"containerID":"x"}]`), 7, "valid-attachments"},
		{"GC list is an object", map[string]string{"CNI_COMMAND": "GC"}, conf(`,"cni.dev/valid-attachments":{}`), 6, "valid-attachments"},
		{"delegated without CNI_PATH", nil, conf(`,"ipam":{"type":"host-local"}`), 4, ""},
		{"no pool", map[string]string{"CNI_COMMAND": "STATUS"}, conf(""), 50, "no pool is set yet"},
		{"STATUS with a bad pool", map[string]string{"CNI_COMMAND": "STATUS"}, conf(`,"ipam":{"subnet":"x"}`), 50, ""},
		{"STATUS without the delegate", map[string]string{"CNI_COMMAND": "STATUS", "CNI_PATH": dir}, conf(`,"ipam":{"type":"none"}`), 50, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{}
			for _, m := range []map[string]string{good, tt.env} {
				for k, v := range m {
					env[k] = v
				}
			}
			out, status := run(t, env, strings.NewReader(tt.stdin))
			text := wantError(t, tt.name, out, status != 0, tt.code)
			if !strings.Contains(text, tt.want) {
				t.Errorf("got %q, want %q in it", text, tt.want)
			}
			if strings.Count(out, "\n") != 1 {
				t.Errorf("not one line: %q", out)
			}
			if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
				t.Error("the store was touched")
			}
		})
	}
}

// The error text that an operator sees, whole.
func TestErrorText(t *testing.T) {
	out, _ := run(t, map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/none", "CNI_IFNAME": "eth0"},
		strings.NewReader(`{"cniVersion":"0.4.0","name":"net","type":"edgeway"}`))
	want := `{"cniVersion":"0.4.0","code":3,"msg":"CNI_NETNS /none does not exist","details":"the container is gone, or its namespace is mounted where the plugin cannot see it"}` + "\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestVersion(t *testing.T) {
	const list = `"supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
	for in, want := range map[string]string{
		`{"cniVersion":"0.4.0"}`: `{"cniVersion":"0.4.0",` + list,
		`{"cniVersion":"1.1.0"}`: `{"cniVersion":"1.1.0",` + list,
		`{"cniVersion":"7.0.0"}`: `{"cniVersion":"7.0.0",` + list, // echoed: SPEC 1.1.0 section 5
		`{}`:                     `{"cniVersion":"1.1.0",` + list,
		``:                       `{"cniVersion":"1.1.0",` + list,
	} {
		out, status := run(t, map[string]string{"CNI_COMMAND": "VERSION"}, strings.NewReader(in))
		if status != 0 {
			t.Errorf("%s: status %d", in, status)
		}
		if diff := cmp.Diff(want, out); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
	out, status := run(t, map[string]string{"CNI_COMMAND": "VERSION"}, strings.NewReader("{"))
	wantError(t, "broken JSON", out, status != 0, codeDecode)
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("bad file descriptor") }

func TestStdinIsBounded(t *testing.T) {
	env := map[string]string{"CNI_COMMAND": "VERSION"}
	endless := io.MultiReader(strings.NewReader(`{"a":"`), infinite{})
	out, status := run(t, env, endless)
	wantError(t, "endless", out, status != 0, codeIO)
	out, status = run(t, env, brokenReader{})
	wantError(t, "unreadable", out, status != 0, codeIO)

	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		var out bytes.Buffer
		status := Process{Getenv: func(k string) string { return env[k] }, Stdin: r, Stdout: &out}.Run(context.Background())
		wantError(t, "never closed", out.String(), status != 0, codeIO)
	})
}

type infinite struct{}

func (infinite) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// DEL, STATUS and GC of a machine that never had a pod make no store.
func TestNothingMakesNoStore(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("netlink sockets of a namespace need root")
	}
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"edgeway","dataDir":%q,"socket":%q,"ipam":{"subnet":"10.1.0.0/24"},"cni.dev/valid-attachments":[]}`,
		filepath.Join(dir, "a/b"), filepath.Join(dir, "sock"))
	for _, verb := range []string{"DEL", "STATUS", "GC"} {
		if verb != "STATUS" && testing.Short() {
			continue // these look at the links of the namespace
		}
		out, status := run(t, map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/none"}, strings.NewReader(conf))
		if status != 0 || out != "" {
			t.Errorf("%s: status %d: %s", verb, status, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err == nil {
		t.Error("a store was made")
	}
}
