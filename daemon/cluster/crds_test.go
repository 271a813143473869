package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
)

const validPeer = `{"localSpeakers":["node-1","node-2"],"localAsNumber":65010,"peerIP":"172.16.0.1","peerAsNumber":65001,"nodeSelector":"pool=a"}`

const validPool = `{"nodeSelector":"pool=a","mode":"overlay","podCIDRs":[{"cidr":"10.10.0.0/16","nodeMaskSize":24},{"cidr":"fd00:10::/48"}],"sourceNAT":{"enabled":true,"exclude":["10.0.0.0/8"]},"vxlan":{"vni":7,"port":4789,"flannel":true},"mtu":1400}`

const validEdgeNode = `{"uplinks":{"provider":"static","egress":"node","inside":["10.0.0.0/8"],"interfaces":[{"mac":"00:16:3e:08:60:0a","address":"10.0.0.21","subnet":"10.0.0.0/24",
	"gateway":"10.0.0.253","answerARP":true,"onLink":true,"addresses":["10.0.0.31","10.0.0.40-10.0.0.55","10.0.0.64/28"],"withdrawn":[{"address":"10.0.0.33","token":"k3x9"}]}]}}`

const validCluster = `{"localASN":65010,"nodeSelector":{"matchLabels":{"pool":"a"}},"bgpSpeakers":[{"name":"n1","peers":[{"name":"s1","peerASN":65001,"peerAddress":"10.10.0.1"}]}]}`

// variations are values for fields of the valid objects, good and bad ones: both sides judge.
var variations = map[string][]string{
	"BGPPeer localSpeakers": {`[]`, `["a"]`, `["a","a"]`, `"a"`, `["Node-1"]`, `["a b"]`, `[""]`, `[5]`, `["a_b.c"]`, `["` + strings.Repeat("a", 253) + `"]`, `["` + strings.Repeat("a", 254) + `"]`, `[["a"]]`, `{}`, `[true]`},
	"BGPPeer localAsNumber": {`0`, `1`, `-1`, `23456`, `65535`, `65534`, `65536`, `4294967294`, `4294967295`, `4294967296`, `"65010"`, `65010.5`, `true`, `[65010]`, `{}`},
	"BGPPeer peerAsNumber":  {`0`, `1`, `23456`, `65535`, `4294967295`, `"65001"`},
	"BGPPeer peerIP":        addresses, "BGPPeer gateway": addresses,
	"BGPPeer peerPort":     {`0`, `1`, `65535`, `65536`, `-1`, `"179"`, `1.5`, `true`},
	"BGPPeer ebgpMultihop": {`0`, `1`, `2`, `255`, `256`, `"2"`},
	"BGPPeer ttlSecurity":  {`true`, `false`, `"yes"`, `"true"`, `1`, `{}`},
	"BGPPeer authPassword": {`{}`, `"hunter2"`, `{"secretKeyRef":{}}`, `{"secretKeyRef":"hunter2"}`, `{"secretKeyRef":{"name":"s"}}`, `{"secretKeyRef":{"key":"k"}}`, `{"secretKeyRef":{"name":"s","key":"k"}}`, `{"secretKeyRef":{"name":"s","key":"k","optional":true}}`, `{"secretKeyRef":{"name":"","key":"k"}}`, `{"secretKeyRef":{"name":"a b","key":"k"}}`, `{"secretKeyRef":{"name":"s","key":5}}`, `{"value":"x"}`},
	"BGPPeer nodeSelector": selectors, "BGPClusterConfig nodeSelector": selectors,
	"BGPPeer password": {`"hunter2"`}, "BGPPeer localspeakers": {`["a"]`}, "BGPClusterConfig peers": {`[]`},
	"BGPClusterConfig localASN": {`0`, `1`, `23456`, `65535`, `4294967294`, `4294967295`, `"65010"`}, "BGPClusterConfig gateway": addresses,
	"EdgeNode uplink": {`{}`}, "EdgeNode uplinks": variedUplinks(),
	"NetworkPool nodeSelector": selectors, "NetworkPool podCIDR": {`[]`},
	"NetworkPool mode":  {`"underlay"`, `"overlay"`, `"auto"`, `"Overlay"`, `""`, `"tunnel"`, `5`, `true`, `[]`, `{}`},
	"NetworkPool mtu":   {`0`, `1279`, `1280`, `65535`, `65536`, `"1500"`, `1500.5`},
	"NetworkPool vxlan": {`{}`, `[]`, `5`, `{"vni":0}`, `{"vni":1}`, `{"vni":16777215}`, `{"vni":16777216}`, `{"port":0}`, `{"port":65535}`, `{"port":65536}`, `{"vni":"1"}`, `{"id":1}`, `{"flannel":true}`, `{"flannel":false}`, `{"flannel":"yes"}`, `{"flannel":1}`},
	"NetworkPool sourceNAT": {
		`{}`, `true`, `{"enabled":false}`, `{"enabled":"yes"}`, `{"exclude":["10.0.0.0/8"]}`, `{"enabled":true,"exclude":[]}`, `{"enabled":true,"exclude":"10.0.0.0/8"}`,
		`{"enabled":true,"exclude":["10.0.0.1/8"]}`, `{"enabled":true,"exclude":["10.0.0.1"]}`, `{"enabled":true,"exclude":["0.0.0.0/0","::/0","224.0.0.0/4"]}`, `{"enabled":true,"excluded":[]}`,
		`{"enabled":true,"exclude":["192.168.128.0/17"]}`, `{"enabled":true,"exclude":["192.168.128.0/16"]}`, `{"enabled":true,"exclude":["10.0.0.0/33"]}`, `{"enabled":true,"exclude":["::ffff:10.0.0.0/104"]}`, `{"enabled":true,"exclude":["10.0.0.0/08"]}`,
	},
	"NetworkPool podCIDRs": {
		`[]`, `{}`, `["10.10.0.0/16"]`, `[{}]`, `[{"nodeMaskSize":24}]`, `[{"cidr":"10.10.0.0/16"}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":16}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":15}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":32}]`,
		`[{"cidr":"10.10.0.0/16","nodeMaskSize":33}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":0}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":"24"}]`, `[{"cidr":"10.10.0.0/25"}]`, `[{"cidr":"10.10.0.0/24"}]`, `[{"cidr":"10.10.0.0/25","nodeMaskSize":26}]`,
		`[{"cidr":"fd00:10::/64"}]`, `[{"cidr":"fd00:10::/65"}]`, `[{"cidr":"fd00:10::/65","nodeMaskSize":80}]`, `[{"cidr":"fd00:10::/48","nodeMaskSize":128}]`, `[{"cidr":"fd00:10::/48","nodeMaskSize":129}]`, `[{"cidr":"fd00:10::/48","mask":64}]`,
		`[{"cidr":"10.10.0.1/16"}]`, `[{"cidr":"10.10.0.0"}]`, `[{"cidr":"10.10.0.0/33"}]`, `[{"cidr":"10.10.0.0/016"}]`, `[{"cidr":"10.010.0.0/16"}]`, `[{"cidr":""}]`, `[{"cidr":5}]`, `[{"cidr":"ten"}]`, `[{"cidr":"10.10.0.0/-1"}]`,
		`[{"cidr":"0.0.0.0/0"}]`, `[{"cidr":"0.0.0.0/8"}]`, `[{"cidr":"127.0.0.0/8"}]`, `[{"cidr":"224.0.0.0/8"}]`, `[{"cidr":"::/0"}]`, `[{"cidr":"::/8"}]`, `[{"cidr":"ff00::/16"}]`, `[{"cidr":"::ffff:10.0.0.0/104"}]`,
		`[{"cidr":"10.10.0.0/16"},{"cidr":"10.11.0.0/16"}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":24},{"cidr":"10.11.0.0/16","nodeMaskSize":25}]`, `[{"cidr":"10.10.0.0/16","nodeMaskSize":26},{"cidr":"fd00:10::/48","nodeMaskSize":80}]`,
		`[{"cidr":"10.10.0.0/16"},{"cidr":"10.10.0.0/16"}]`, `[{"cidr":"10.10.0.0/16"},{"cidr":"fd00::/48"},{"cidr":"10.11.0.0/16"},{"cidr":"fd00:1::/48"}]`,
	},
	"BGPClusterConfig bgpSpeakers": {
		`[]`, `{}`, `"n1"`, `[{"name":"n1"}]`, `[{"name":"n1","peers":[]}]`, `[{"peers":[{"name":"s1","peerASN":65001,"peerAddress":"10.10.0.1"}]}]`,
		speaker("n1", peer("s1", "")) + ``, `[{"name":"n1","peers":{}}]`, `[{"name":"n1","peers":["s1"]}]`,
		list(speaker1("n1", peer("s1", "")), speaker1("n1", peer("s1", ""))),
		list(speaker1("n1", peer("s1", "")), speaker1("n2", peer("s1", ""))),
		list(speaker1("n 1", peer("s1", ""))), list(speaker1("", peer("s1", ""))),
		list(speaker1("n1", peer("s1", ""), peer("s2", ""))),
		list(speaker1("n1", peer("s1", ""), peer("s2", `"peerPort":1179`))),
		list(speaker1("n1", peer("s1", `"peerPort":1179`), peer("s2", `"peerPort":1179`))),
		list(speaker1("n1", peer("s1", ""), peer("s1", `"peerPort":1179`))),
		list(speaker1("n1", peer("", ""))),
		list(speaker1("n1", peer("s1", `"peerPort":0`))), list(speaker1("n1", peer("s1", `"ebgpMultihop":1`))),
		list(speaker1("n1", peer("s1", `"ttlSecurity":true,"ebgpMultihop":2`))),
		list(speaker1("n1", peer("s1", `"ttlSecurity":false,"ebgpMultihop":2`))),
		list(speaker1("n1", peer("s1", `"peerIP":"10.0.0.1"`))),
		list(speaker1("n1", peer("s1", `"authPassword":{"secretKeyRef":{"name":"s","key":"k"}}`))),
		list(speaker1("n1", peer("s1", `"authPassword":{"secretKeyRef":{"name":"s"}}`))),
		`[{"name":"n1","peers":[{"name":"s1","peerASN":65535,"peerAddress":"10.10.0.1"}]}]`,
		`[{"name":"n1","peers":[{"name":"s1","peerASN":65001,"peerAddress":"127.0.0.1"}]}]`,
		`[{"name":"n1","peers":[{"peerASN":65001,"peerAddress":"10.10.0.1"}]}]`,
		`[{"name":"n1","peers":[{"name":"s1","peerAddress":"10.10.0.1"}]}]`,
		`[{"name":"n1","peers":[{"name":"s1","peerASN":65001}]}]`,
	},
}

// variedUplinks are values of spec.uplinks: the valid one with one key of it, or of its interface, changed.
func variedUplinks() (all []string) {
	uplink := func(more string) string {
		return `{"provider":"static","interfaces":[{"mac":"00:16:3e:08:60:0a","address":"10.0.0.21","subnet":"10.0.0.0/24","gateway":"10.0.0.253"` + more + `}]}`
	}
	twice := func(id int) string { // the interface before has VLAN 100 of eth0
		return fmt.Sprintf(`"vlan":{"parent":"eth0","id":100},"address":"10.0.0.20","subnet":"10.0.0.0/24","gateway":"10.0.0.253"},{"vlan":{"parent":"eth0","id":%d}`, id)
	}
	varied := func(valid, key string, values ...string) {
		for _, value := range values {
			all = append(all, strings.Replace(valid, key, value, 1))
		}
	}
	all = []string{`{}`, `[]`, `"static"`, uplink(``)}
	varied(uplink(``), `"provider":"static"`, `"provider":"ens"`, `"provider":"cloud"`, `"provider":5`, `"provider":""`, `"egress":"node"`, `"provider":"static","egress":"uplink"`, `"provider":"static","egress":"nodes"`,
		`"provider":"static","egress":"node","inside":[]`, `"provider":"static","inside":[]`, `"provider":"static","inside":["10.0.0.0/8"]`, `"provider":"static","egress":"node","inside":["10.0.0.1/8"]`,
		`"provider":"static","egress":"node","inside":["0.0.0.0/0"]`, `"provider":"static","egress":"node","inside":["fd00::/8"]`, `"provider":"static","egress":"node","inside":"10.0.0.0/8"`, `"provider":"static","interface":[]`,
		`"provider":"static","mark":64`, `"provider":"static","mark":1073741824`, `"provider":"static","mark":2147483648`, `"provider":"static","mark":3`, `"provider":"static","mark":4096`, `"provider":"static","mark":8192`, `"provider":"static","mark":16384`, `"provider":"static","mark":32768`, `"provider":"static","mark":0`,
		`"provider":"static","mark":-1`, `"provider":"static","mark":"64"`, `"provider":"ecs"`)
	varied(uplink(``), `"mac":"00:16:3e:08:60:0a"`, `"name":"eth1"`, `"name":"lo"`, `"name":"a-name-of-16-cha"`, `"name":"eth 1"`, `"name":""`, `"name":5`, `"id":"eni-58z57"`, `"mac":"00:16:3E:08:60:0A"`,
		`"mac":"01:16:3e:08:60:0a"`, `"mac":"00:00:00:00:00:00"`, `"mac":"00-16-3e-08-60-0a"`, `"mac":"00:16:3e:08:60"`, `"mac":""`, `"mac":"02:16:3e:08:60:0a","name":"eth1"`, `"vlan":{"parent":"eth0","id":100}`,
		`"name":"eth1","vlan":{}`, `"name":"eth1","vlan":{"parent":"eth0","id":100}`, `"mac":"00:16:3e:08:60:0a","vlan":{"parent":"eth0","id":100}`, `"vlan":{}`, `"vlan":"eth0.100"`, `"vlan":{"parent":"eth0"}`, `"vlan":{"id":100}`,
		`"vlan":{"parent":"lo","id":100}`, `"vlan":{"parent":"a-name-of-16-cha","id":100}`, `"vlan":{"parent":"","id":100}`, `"vlan":{"parent":"eth0","id":0}`, `"vlan":{"parent":"eth0","id":4094}`, `"vlan":{"parent":"eth0","id":4095}`, `"vlan":{"parent":"eth0","id":"100"}`,
		`"vlan":{"parent":"eth0","id":100,"protocol":"802.1ad"}`, twice(100), twice(101), `"mac":"02:16:3e:08:60:0a","mtu":1500`)
	for _, key := range []string{`"address":"10.0.0.21"`, `"gateway":"10.0.0.253"`} {
		name, _, _ := strings.Cut(key, ":")
		for _, value := range addresses {
			varied(uplink(``), key, name+":"+value)
		}
	}
	varied(uplink(``), `,"subnet":"10.0.0.0/24"`, ``, `,"subnet":"10.0.0.1/24"`, `,"subnet":"10.0.0.0"`, `,"subnet":"10.0.0.0/0"`, `,"subnet":"10.0.0.0/33"`, `,"subnet":"10.0.0.0/032"`, `,"subnet":"10.0.0.0/32"`, `,"subnet":"fd00::/64"`, `,"subnet":"224.0.0.0/24"`, `,"subnet":5`)
	varied(uplink(``), `,"gateway":"10.0.0.253"`, ``)
	for _, more := range []string{
		`"answerARP":"yes"`, `"answerARP":false,"onLink":false`, `"onLink":1`, `"addresses":[]`, `"addresses":"10.0.0.31"`, `"withdrawn":[]`, `"withdrawn":["10.0.0.31"]`, `"withdrawn":[{"address":"10.0.0.31"}]`, `"id":""`, `"id":5`,
		`"withdrawn":[{"token":"a"}]`, `"withdrawn":[{"address":"10.0.0.31","token":""}]`, `"withdrawn":[{"address":"10.0.0.31","token":"a","since":"b"}]`, `"withdrawn":[{"address":"fd00::1","token":"a"}]`,
	} {
		all = append(all, uplink(","+more))
	}
	for _, value := range append([]string{
		`"10.0.0.40-10.0.0.55"`, `"10.0.0.40-10.0.0.40"`, `"10.0.0.55-10.0.0.40"`, `"10.0.0.40-55"`, `"10.0.0.40 - 10.0.0.55"`, `"10.0.0.0-10.0.15.255"`, `"10.0.0.0-10.0.16.0"`, `"10.0.0.0-230.0.0.1"`, `"10.0.0.40-"`, `"-10.0.0.55"`, `"10.0.0.1-10.0.0.2-10.0.0.3"`,
		`"10.0.0.64/28"`, `"10.0.0.65/28"`, `"10.0.0.0/20"`, `"10.0.0.0/19"`, `"10.0.0.0/32"`, `"10.0.0.0/33"`, `"10.0.0.0/28-10.0.1.0/28"`, `"10.0.0.64/028"`, `"fd00::/124"`, `"127.0.0.0/28"`,
	}, addresses...) {
		all = append(all, uplink(`,"addresses":[`+value+`]`))
	}
	const v6 = `{"provider":"static","interfaces":[{"name":"eth1","address":"fd00:10::21","subnet":"fd00:10::/64","gateway":"fd00:10::fe","addresses":["fd00:10::31"]}]}`
	both := strings.Replace(v6, `[{`, `[{"name":"eth1","address":"10.0.0.21","subnet":"10.0.0.0/24","gateway":"10.0.0.253","addresses":["10.0.0.31"]},{`, 1)
	all = append(all, v6, both)
	varied(v6, `"provider":"static"`, `"provider":"ens"`, `"provider":"ecs"`, `"provider":"static","egress":"node","inside":["fd00::/8","10.0.0.0/8"]`, `"provider":"static","egress":"node","inside":["fe80::/16"]`)
	varied(v6, `"address":"fd00:10::21"`, `"address":"10.0.0.21"`, `"address":"fe80::21"`)
	varied(v6, `"gateway":"fd00:10::fe"`, `"gateway":"fe80::fe"`, `"gateway":"10.0.0.253"`, `"gateway":"ff02::2"`, `"gateway":"FE80::1:2:3:4"`)
	varied(v6, `"subnet":"fd00:10::/64"`, `"subnet":"fd00:10::/128"`, `"subnet":"fd00:10::/129"`, `"subnet":"fd00:10::/0"`, `"subnet":"fd00:10::"`, `"subnet":"2001:DB8::/32"`, `"subnet":"::/8"`, `"subnet":"10.0.0.0/24"`, `"subnet":"fd00:10::10.0.0.0/120"`)
	for _, value := range append([]string{
		`"fd00:10::40-fd00:10::4f"`, `"fd00:10::40-10.0.0.55"`, `"fd00:10::40-"`, `"fd00:10::40/124"`, `"fd00:10::/116"`, `"fd00:10::/115"`, `"fd00:10::/128"`, `"fd00:10::/0128"`, `"10.0.0.31"`, `"fd00:10:0:0:0:0:0:31"`, `"fd00:10:0:0:0:0:0::"`, `"fd00::1:2:3:4:5:6"`,
		`"fd00::1:2:3:4:5:6:7"`, `"fd00:1:2:3:4:5:6::7"`, `"fd00:1:2:3:4:5::7"`, `"fd00:1:2:3::5:6:7"`, `"fd00:1:2:3::5:6:7:8"`, `"fd00:1::12345"`, `"3fff::1"`, `"4000::1"`, `"1fff::1"`, `"fc00::1"`, `"fb00::1"`, `"fe00::1"`, `"2::1"`,
	}, addresses...) {
		varied(v6, `"fd00:10::31"`, value)
	}
	return all
}

func speaker(name string, peers ...string) string { return list(speaker1(name, peers...)) }

func speaker1(name string, peers ...string) string {
	return fmt.Sprintf(`{"name":%q,"peers":%s}`, name, list(peers...))
}

func list(items ...string) string { return "[" + strings.Join(items, ",") + "]" }

// peer is a switch with more keys.
func peer(name, more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"name":%q,"peerASN":65001,"peerAddress":"10.10.0.1"%s}`, name, more)
}

var addresses = []string{
	`"10.0.0.1"`, `"10.0.0.300"`, `"10.0.0"`, `"10.0.0.01"`, `""`, `" 10.0.0.1"`, `"switch"`, `5`, `true`, `[]`, `{}`, `"10.0.0.1/24"`, `"10.0.0.1:179"`,
	`"0.0.0.0"`, `"0.0.0.1"`, `"127.0.0.1"`, `"127.255.0.1"`, `"128.0.0.1"`, `"126.0.0.1"`, `"223.255.255.255"`, `"224.0.0.1"`, `"230.1.2.3"`, `"239.1.2.3"`, `"240.0.0.1"`, `"255.255.255.255"`, `"255.255.255.254"`, `"169.254.1.1"`,
	`"fd00::1"`, `"FD00::1"`, `"2001:db8:0:0:0:0:0:1"`, `"2001:db8::10.0.0.1"`, `"::"`, `"0::0"`, `"0:0:0:0:0:0:0:0"`, `"::0.0.0.0"`, `"::1"`, `"0:0:0:0:0:0:0:1"`, `"0::0001"`, `"::0.0.0.1"`, `"::2"`, `"::10.0.0.1"`, `"1::"`,
	`"ff02::1"`, `"FF02::1"`, `"ff::1"`, `"fe80::1"`, `"fe80::1%eth0"`, `"::ffff:10.0.0.1"`, `"::FFFF:a00:1"`, `"0:0:0:0:0:ffff:a00:1"`, `"::ffff:0:a00:1"`, `"0:0::ffff:a00:1"`, `"64:ff9b::a00:1"`, `"fd00::1::2"`, `"fd00:::1"`, `"[fd00::1]"`, `"12345::1"`,
}

var selectors = []string{
	`"all()"`, `" all() "`, `"all(),a=b"`, `"All()"`, `""`, `"  "`, `5`, `65010`, `0`, `-1`, `1.5`, `true`, `false`, `[]`, `["a=b"]`, `{}`,
	`"a=b"`, `"ASN=65010"`, `"alibabacloud.com/nodepool-id=npxxx"`, `"a==b"`, `"a!=b"`, `"a = b"`, `"a="`, `"a"`, `"!a"`, `"! a"`, `"!!a"`, `"a,b"`, `"a=b,!c, d in (x, y)"`, `"a,"`, `",a"`,
	`"a in (b)"`, `"a in(b)"`, `"a in ()"`, `"a in (b,,c)"`, `"a in (,)"`, `"a in b"`, `"ain(b)"`, `"a notin (b,c)"`, `"a in (b c)"`, `"a in (b"`, `"in in (in)"`, `"a>5"`, `"a > 05"`, `"a>b"`, `"a<-5"`, `"a>"`,
	`"a===b"`, `"a=b=c"`, `"a b"`, `"(a)"`, `"a=(b"`, `"a=b c"`, `"!a=b"`, `"a=!b"`, `"/a=b"`, `"x/=b"`, `"x/y/z=b"`, `"X.y/z=b"`, `"x_y/z=b"`, `"-a=b"`, `"a-=b"`, `"a=-b"`, `"a=b-"`, `"a.b_c-d=E.f_g-h"`, `"ä=b"`, `"a;b"`,
	`"` + strings.Repeat("a", 63) + `=` + strings.Repeat("b", 63) + `"`, `"` + strings.Repeat("a", 64) + `=b"`, `"a=` + strings.Repeat("b", 64) + `"`,
	`{"matchLabels":{}}`, `{"matchLabel":{"a":"b"}}`, `{"matchLabels":{"a":"b"},"matchLabel":{}}`, `{"matchLabels":{"a":""}}`, `{"matchLabels":{"a":"b c"}}`, `{"matchLabels":{"ASN":65010}}`, `{"matchLabels":{"gpu":true}}`, `{"matchLabels":{"a":-5}}`, `{"matchLabels":{"a":["b"]}}`, `{"matchLabels":{"a":[]}}`, `{"matchLabels":{"a":{}}}`, `{"matchLabels":{"a":{"b":"c"}}}`, `{"matchLabels":["a"]}`, `{"matchLabels":"a=b"}`, `{"matchLabels":{"a":"` + strings.Repeat("b", 64) + `"}}`,
	`{"matchExpressions":[]}`, `{"matchLabels":{},"matchExpressions":[]}`, `{"matchLabels":{"a":"b"},"matchExpressions":[]}`, `{"matchLabels":{},"matchExpressions":[{"key":"a","operator":"Exists"}]}`,
	`{"matchExpressions":[{"key":"a","operator":"Exists"}]}`, `{"matchExpressions":[{"key":"a","operator":"Exists","values":[]}]}`, `{"matchExpressions":[{"key":"a","operator":"Exists","values":["b"]}]}`, `{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}`,
	`{"matchExpressions":[{"key":"a","operator":"In","values":["b","c"]}]}`, `{"matchExpressions":[{"key":"a","operator":"In","values":[]}]}`, `{"matchExpressions":[{"key":"a","operator":"In"}]}`, `{"matchExpressions":[{"key":"a","operator":"NotIn","values":["b c"]}]}`, `{"matchExpressions":[{"key":"a","operator":"NotIn","values":[5]}]}`,
	`{"matchExpressions":[{"key":"a","operator":"Like","values":["b"]}]}`, `{"matchExpressions":[{"key":"a","operator":"Gt","values":["5"]}]}`, `{"matchExpressions":[{"key":"a"}]}`, `{"matchExpressions":[{"operator":"Exists"}]}`, `{"matchExpressions":[{"key":"a b","operator":"Exists"}]}`, `{"matchExpressions":[{"key":"a","operator":"Exists","value":"b"}]}`, `{"matchExpressions":["a"]}`, `{"matchExpressions":{"key":"a","operator":"Exists"}}`,
}

// candidates are objects of our kinds, by name: the variations, and those of all other tests.
func candidates(t *testing.T) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for kind, text := range map[string]string{kindPeer: validPeer, kindCluster: validCluster, kindPool: validPool, kindEdgeNode: validEdgeNode} {
		spec := map[string]any{}
		mustUnmarshal(t, text, &spec)
		add := func(name string, spec any) {
			all[kind+" "+name] = map[string]any{"apiVersion": APIVersion(kind), "kind": kind, "spec": spec}
		}
		add("valid", spec)
		add("spec as text", "x")
		add("spec as list", []any{})
		add("empty spec", map[string]any{})
		all[kind+" no spec"] = map[string]any{"apiVersion": APIVersion(kind), "kind": kind}
		all[kind+" sepc"] = map[string]any{"apiVersion": APIVersion(kind), "kind": kind, "spec": spec, "sepc": map[string]any{}}
		for key := range spec {
			without := maps.Clone(spec)
			delete(without, key)
			add("without "+key, without)
		}
		for field, values := range variations {
			of, key, _ := strings.Cut(field, " ")
			for _, value := range values {
				if of != kind {
					continue
				}
				varied := maps.Clone(spec)
				var v any
				mustUnmarshal(t, value, &v)
				varied[key] = v
				add(key+" "+value, varied)
			}
		}
	}
	both := maps.Clone(all["BGPPeer valid"]["spec"].(map[string]any))
	both["ttlSecurity"], both["ebgpMultihop"] = true, 2
	all["BGPPeer ttlSecurity and ebgpMultihop"] = map[string]any{"apiVersion": APIVersion(kindPeer), "kind": kindPeer, "spec": both}
	maps.Copy(all, tested(t))
	return all
}

// tested are the objects of our kinds in testdata.
func tested(t *testing.T) map[string]map[string]any {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata: %d files, %v", len(files), err)
	}
	all := map[string]map[string]any{}
	for _, path := range files {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			next := yamlDocuments(f.Data)
			for i := 0; ; i++ {
				n, err := next()
				if err != nil {
					break
				}
				for j, o := range ourObjects(n) {
					all[fmt.Sprintf("%s %s %d %d", filepath.Base(path), f.Name, i, j)] = o
				}
			}
		}
	}
	return all
}

// ourObjects returns what a document holds of our kinds, itself or in a List.
func ourObjects(n *yaml.Node) []map[string]any {
	var o map[string]any
	if n.Decode(&o) != nil {
		return nil // not an object at all, or a key twice: no API server gets to see it
	}
	apiVersion, _ := o["apiVersion"].(string)
	name, _ := o["kind"].(string)
	if k := (kind{apiVersion, name}); k.ours() && slices.Contains(ownKinds(), name) {
		return []map[string]any{o}
	}
	items, _ := o["items"].([]any)
	var all []map[string]any
	for _, item := range items {
		var n yaml.Node
		if n.Encode(item) == nil {
			all = append(all, ourObjects(&n)...)
		}
	}
	return all
}

// The API server accepts what a manifest in a directory may say. It refuses what would be a Problem there, and
// names the field.
func TestAPIServerValidation(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	c := dynamicClient(t, cp.AdminKubeconfig())
	accepted, refused := 0, 0
	all := candidates(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		o := all[name]
		metadata, _ := o["metadata"].(map[string]any)
		metadata = maps.Clone(metadata)
		if metadata == nil {
			metadata = map[string]any{}
		}
		metadata["name"] = "test"
		delete(metadata, "generation")
		o["metadata"] = metadata
		text, err := json.Marshal(o)
		if err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		t.Run(name, func(t *testing.T) {
			want := readManifest("f.json", text)
			if len(want.statements) != 1 {
				t.Fatalf("%s: %v", text, want.problems)
			}
			var u unstructured.Unstructured
			mustUnmarshal(t, string(text), &u.Object)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			got, err := createDry(ctx, c, text)
			switch {
			case !want.statements[0].valid():
				refused++
				checkRefused(t, want.statements[0].problems, err)
			case err != nil:
				t.Errorf("refused: %v", err)
			default:
				accepted++
				checkKept(t, want.statements[0], got)
			}
		})
	}
	t.Logf("%d accepted, %d refused", accepted, refused)
}

// createDry asks the API server to create the object and returns what it would have stored.
func createDry(ctx context.Context, c dynamic.Interface, text []byte) (*unstructured.Unstructured, error) {
	var u unstructured.Unstructured
	if err := json.Unmarshal(text, &u.Object); err != nil {
		return nil, err
	}
	if err := u.UnmarshalJSON(text); err != nil {
		return nil, err
	}
	return c.Resource(gvr(u.GetKind())).Create(ctx, &u, metav1.CreateOptions{
		DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict,
	})
}

var specPath = regexp.MustCompile(`\b(?:spec|metadata)(?:[.\w]|\[\d+\])*`)

// checkRefused checks that the API server names what the problems name.
func checkRefused(t *testing.T, problems []Problem, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted, want a refusal for %v", problems)
		return
	}
	if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
		t.Errorf("got %v, want Invalid or BadRequest", err)
	}
	named := slices.ContainsFunc(problems, func(p Problem) bool {
		path := specPath.FindString(p.Want)
		if p.Reason == unknownKey && strings.Contains(err.Error(), strings.Trim(p.Got, `"`)) {
			return true
		}
		return path != "" && strings.Contains(err.Error(), path) || slices.Contains([]Reason{duplicateEntry, missingField}, p.Reason) && strings.Contains(err.Error(), parent(path))
	})
	if !named {
		t.Errorf("the refusal names none of the fields of %v:\n%v", problems, err)
	}
}

func parent(path string) string { return path[:max(strings.LastIndexAny(path, ".["), 0)] }

// checkKept checks that what is stored says the same as what was written.
func checkKept(t *testing.T, want statement, stored *unstructured.Unstructured) {
	t.Helper()
	text, err := stored.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	got := readManifest("f.json", text)
	if len(got.statements) != 1 || !got.statements[0].valid() {
		t.Fatalf("what is stored is not valid: %s %v", text, got)
	}
	if d := cmp.Diff(objectIn(want), objectIn(got.statements[0]), byValue); d != "" {
		t.Errorf("written (-) and stored (+):\n%s", d)
	}
}

// objectIn returns the resource that the statement makes.
func objectIn(s statement) any {
	if s.object.edgeNode != nil {
		e := *s.object.edgeNode
		e.Generation = 0 // a manifest has none
		return e
	}
	if s.object.pool != nil {
		return *s.object.pool
	}
	return *s.object.peering
}

func mustUnmarshal(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// The text form of a selector is a pattern in the CRDs, as their schema language has no better
// word for a value of two types. It says what ParseSelector says.
func TestSelectorPattern(t *testing.T) {
	for _, file := range []string{"bgppeers.yaml", "bgpclusterconfigs.yaml", "networkpools.yaml"} {
		text, err := os.ReadFile(filepath.Join(crds, file))
		if err != nil {
			t.Fatal(err)
		}
		friendly, full := selectorPatterns(t, string(text))
		for _, s := range append(generatedSelectors(), quoted(selectors)...) {
			_, err := ParseSelector(s)
			if got := full.MatchString(s); got != (err == nil) {
				t.Errorf("%s: the pattern says %v of %q, ParseSelector %v", file, got, s, err)
			}
			if friendly.MatchString(s) && err != nil {
				t.Errorf("%s: the short pattern takes %q: %v", file, s, err)
			}
		}
	}
}

func quoted(values []string) []string {
	var texts []string
	for _, v := range values {
		var s string
		if json.Unmarshal([]byte(v), &s) == nil {
			texts = append(texts, s)
		}
	}
	return texts
}

// selectorPatterns returns the two patterns of the text form.
func selectorPatterns(t *testing.T, crd string) (friendly, full *regexp.Regexp) {
	t.Helper()
	found := regexp.MustCompile(`(?m)^ +- pattern: '(.*)'$`).FindAllStringSubmatch(crd, -1)
	if len(found) != 2 {
		t.Fatalf("%d patterns, want 2", len(found))
	}
	return regexp.MustCompile(found[0][1]), regexp.MustCompile(found[1][1])
}

// generatedSelectors returns all short sequences of what a selector is made of.
func generatedSelectors() []string {
	parts := []string{"a", "b/c", "in", "notin", "7", " ", "!", "=", "==", "!=", "<", ">", "(", ")", ",", "all()", "-", "/"}
	last, all := []string{""}, []string{""}
	for range 4 {
		var next []string
		for _, s := range last {
			for _, p := range parts {
				next = append(next, s+p)
			}
		}
		last, all = next, append(all, next...)
	}
	return all
}
