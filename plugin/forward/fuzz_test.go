package forward

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/plugin"
)

// FuzzForward compares a forwarded call with the same call of the whole program. Both calls must have the
// same exit status and print the same answer.
func FuzzForward(f *testing.F) {
	const keys = `"cniVersion":"1.1.0","name":"net","type":"edgeway","socket":"SOCKET"`
	for _, stdin := range []string{
		"{" + keys + "}", "{" + keys + `,"ipam":{"subnet":"10.1.0.0/24"}}`, "{" + keys + `,"mtu":"big"}`, "{" + keys + `,"ipam":{"type":"host-local"}}`,
		`{"name":"net","ipam":{"socket":"SOCKET"}}`, `{"Socket":"SOCKET","name":"net"}`, `{"socket":"SOCKET","socket":"/x"}`, `{"args":{"socket":"SOCKET"},"name":"n"}`,
		"{" + keys + "}{}", "[]", "null", "", "\x00", "{" + keys + `,"prevResult":{"ips":7}}`, "{" + keys + `,"cni.dev/valid-attachments":[]}`,
	} {
		for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add"} {
			f.Add(verb, "c1", "eth0", "A=B", "/proc/self/ns/net", []byte(stdin))
		}
	}
	f.Add("ADD", "../x", "eth%d", "IP", "", []byte("{"+keys+"}"))
	asked := 0
	verbs := &plugin.Node{} // without a store it changes nothing
	socket := daemon(f, func(ctx context.Context, req api.Request, netns *os.File) api.Reply {
		asked++
		return verbs.Do(ctx, plugin.Call{CNI: *req.CNI, NetnsFile: netns})
	})
	f.Fuzz(func(t *testing.T, verb, id, ifName, args, netns string, stdin []byte) {
		variables := map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": id, "CNI_IFNAME": ifName, "CNI_ARGS": args, "CNI_NETNS": netns}
		e := exchange{}
		for k, v := range variables {
			if strings.Contains(v, "\x00") {
				t.Skip("an environment variable cannot contain a NUL")
			}
			e.env = append(e.env, k+"="+v)
		}
		stdin = bytes.ReplaceAll(stdin, []byte("SOCKET"), []byte(socket))
		e.stdin = bytes.NewReader(stdin)
		asked = 0
		e.run(t)
		if e.Begun && !e.served || e.Silent || asked > 1 || !e.served && e.stdout != "" {
			t.Fatalf("asked %d times: %+v", asked, e)
		}
		if !e.served {
			return
		}
		var out bytes.Buffer
		status := plugin.Process{Getenv: func(k string) string { return variables[k] }, Stdin: bytes.NewReader(stdin), Stdout: &out}.Run(t.Context())
		if status != e.status || out.String() != e.stdout {
			t.Errorf("forwarded:     status %d, %q\nwhole program: status %d, %q", e.status, e.stdout, status, out.String())
		}
	})
}
