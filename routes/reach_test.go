package routes

import (
	"fmt"
	"testing"
	"time"
)

// Behind a switch that answers ARP for everybody, a machine that lives answers itself, the switch says which machine
// is gone, and of a machine whose firewall drops packets nothing comes back.
func TestReach(t *testing.T) {
	here, there := newSpace(t), newSpace(t) // there is the switch, and a machine
	link(t, here, there)
	there.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0")
	lives := []Neighbour{{"eth0", addr("192.0.2.2")}, {"eth0", addr("fd00::2")}}
	gone := []Neighbour{{"eth0", addr("192.0.2.77")}, {"eth0", addr("fd00::77")}}
	drops := []Neighbour{{"eth0", addr("192.0.2.88")}, {"eth0", addr("fd00::88")}}
	heard, err := here.k.Listen(t.Context(), lives[:1])
	for begun := time.Now(); err == nil && heard[lives[0]].MAC == ""; heard, err = here.k.Listen(t.Context(), lives[:1]) {
		if time.Since(begun) > 30*time.Second {
			t.Fatal("no MAC")
		}
		<-time.After(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := map[Neighbour]Hearing{}
	var all []Neighbour
	for i := range lives {
		want[lives[i]], want[gone[i]], want[drops[i]] = Answers, Silent, Unsure
		all = append(all, lives[i], gone[i], drops[i])
		for _, n := range []Neighbour{gone[i], drops[i]} {
			here.run(fmt.Sprintf("ip neigh replace %s lladdr %s dev eth0 nud permanent", n.IP, heard[lives[0]].MAC))
		}
		there.run(fmt.Sprintf("ip route add blackhole %s", drops[i].IP))
	}
	var r Reacher
	defer r.Close()
	got := map[Neighbour]Hearing{}
	for begun := time.Now(); ; {
		var back map[Neighbour]Hearing
		err := here.lab.Do(func() (err error) {
			back, err = r.Reach(t.Context(), all)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		wrong := 0
		for n, h := range want {
			if got[n] = max(got[n], back[n]); got[n] != h {
				wrong++
			}
		}
		if wrong == 0 {
			return
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("heard %v, want %v", got, want)
		}
		<-time.After(time.Second)
	}
}
