package cluster

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"unique"
)

// The kinds that are read, by apiVersion.
const (
	groupCore     = "" // v1
	groupOpenYurt = "network.openyurt.io"
	groupAlibaba  = "network.alibabacloud.com"
	groupEdgeway  = "network.edgeway.io"

	kindNode    = "Node"
	kindSecret  = "Secret"
	kindPeer    = "BGPPeer"
	kindCluster = "BGPClusterConfig"
	kindPool    = "NetworkPool"

	kindEdgeNode = "EdgeNode"

	secretNamespace = "kube-system"
)

// SharedKinds are the kinds of resources that matter to all nodes.
func SharedKinds() []string { return []string{kindPeer, kindCluster, kindPool} }

// ownKinds are the kinds that Kubernetes does not have itself, and that people write.
func ownKinds() []string { return append(SharedKinds(), kindEdgeNode) }

// Keys of every object. In our kinds any other key is a typing error. Node and Secret come from an API server
// and carry more keys than we read.
var (
	objectKeys   = []string{"apiVersion", "kind", "metadata", "spec", "status"}
	metadataKeys = []string{
		"name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation",
		"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers",
		"generateName", "managedFields", "ownerReferences", "selfLink",
	}
)

// readNode reads the fields of a v1 Node that we use.
func readNode(root mapping, name string) Node {
	n := Node{Name: name}
	labels := root.at("metadata").mapping().at("labels").mapping()
	if len(labels.keys) > 0 {
		n.Labels = make(map[string]string, len(labels.keys))
		for _, key := range labels.keys {
			// 5,000 nodes have the same keys, and mostly the same values.
			n.Labels[unique.Make(key.Value).Value()] = unique.Make(labels.at(key.Value).scalar()).Value()
		}
	}
	annotations := root.at("metadata").mapping().at("annotations").mapping()
	for _, key := range flannelKeys() {
		if f := annotations.at(key); !f.absent() {
			if n.Annotations == nil {
				n.Annotations = map[string]string{}
			}
			n.Annotations[key] = f.scalar()
		}
	}
	spec := root.at("spec").mapping()
	cidrs := spec.at("podCIDRs").list()
	if one := spec.at("podCIDR"); len(cidrs) == 0 && !one.absent() && one.scalar() != "" {
		cidrs = []field{one}
	}
	for _, f := range cidrs {
		p := f.prefix()
		if !p.IsValid() {
			continue
		}
		// kube-controller-manager gives out, and accepts, one CIDR of each family.
		if slices.ContainsFunc(n.PodCIDRs, func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			f.badText(badCIDR, "one pod CIDR of each family")
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p)
	}
	status := root.at("status").mapping()
	var wrong []Problem
	for _, f := range status.at("addresses").list() {
		entry := f.mapping()
		if entry.at("type").scalar() != "InternalIP" {
			continue
		}
		entry.require("address")
		before := len(entry.doc.problems)
		if ip := entry.at("address").addr(); ip.IsValid() && !slices.Contains(n.Addresses, ip) {
			n.Addresses = append(n.Addresses, ip)
		}
		wrong, entry.doc.problems = append(wrong, entry.doc.problems[before:]...), entry.doc.problems[:before]
	}
	// A cloud provider may list a host name beside the address: that entry alone does not count. A Node that has
	// no valid InternalIP at all keeps its last valid version.
	if root.doc.remarks = wrong; len(n.Addresses) == 0 {
		root.doc.problems, root.doc.remarks = append(root.doc.problems, wrong...), nil
	}
	return n
}

// readSecret reads a v1 Secret. stringData wins over data, as in the API server. Problems never show a value.
func readSecret(root mapping, name string) Secret {
	s := Secret{Name: name, Data: map[string][]byte{}}
	encoded := root.at("data").mapping()
	for _, key := range encoded.keys {
		f := encoded.at(key.Value)
		value, err := base64.StdEncoding.DecodeString(f.scalar())
		var corrupt base64.CorruptInputError
		switch {
		case errors.As(err, &corrupt):
			f.bad(badSecret, "base64 in "+f.path, fmt.Sprintf("something else from its byte %d on", int64(corrupt)+1))
		case err != nil:
			f.bad(badSecret, "base64 in "+f.path, "something else")
		default:
			s.Data[key.Value] = value
		}
	}
	plain := root.at("stringData").mapping()
	for _, key := range plain.keys {
		s.Data[key.Value] = []byte(plain.at(key.Value).scalar())
	}
	return s
}

// readPeer reads a BGPPeer: many speakers, one switch.
func readPeer(root mapping, name string) Peering {
	spec := strictSpec(root, "localSpeakers", "localAsNumber", "peerIP", "peerAsNumber", "gateway",
		"nodeSelector", "authPassword", "peerPort", "ebgpMultihop", "ttlSecurity")
	spec.require("localSpeakers", "localAsNumber", "peerIP", "peerAsNumber", "nodeSelector")
	p := Peering{
		Kind: kindPeer, Name: name,
		LocalASN: spec.at("localAsNumber").asn(),
		Selector: spec.at("nodeSelector").selector(),
		Gateway:  spec.at("gateway").addr(),
	}
	peer := readSession(spec, "peerIP", "peerAsNumber")
	speakers := spec.at("localSpeakers")
	for _, f := range speakers.items("node") {
		node := f.nodeName()
		if slices.ContainsFunc(p.Speakers, func(s Speaker) bool { return s.Node == node }) && node != "" {
			f.bad(duplicateEntry, "each node once in "+speakers.path, strconv.Quote(node)+" twice")
			continue
		}
		p.Speakers = append(p.Speakers, Speaker{Node: node, Peers: []Peer{peer}})
	}
	return p
}

// readCluster reads a BGPClusterConfig: each speaker has its own switches.
func readCluster(root mapping, name string) Peering {
	spec := strictSpec(root, "localASN", "nodeSelector", "bgpSpeakers", "gateway")
	spec.require("localASN", "nodeSelector", "bgpSpeakers")
	p := Peering{
		Kind: kindCluster, Name: name,
		LocalASN: spec.at("localASN").asn(),
		Selector: spec.at("nodeSelector").selector(),
		Gateway:  spec.at("gateway").addr(),
	}
	speakers := spec.at("bgpSpeakers")
	for _, f := range speakers.items("speaker") {
		m := f.mapping("name", "peers")
		m.require("name", "peers")
		s := Speaker{Node: m.at("name").name(), Peers: readPeers(m.at("peers"))}
		if slices.ContainsFunc(p.Speakers, func(o Speaker) bool { return o.Node == s.Node }) && s.Node != "" {
			f.bad(duplicateEntry, "each speaker once in "+speakers.path, strconv.Quote(s.Node)+" twice")
			continue
		}
		p.Speakers = append(p.Speakers, s)
	}
	return p
}

// readPeers reads spec.bgpSpeakers[].peers.
func readPeers(list field) []Peer {
	var peers []Peer
	for _, f := range list.items("peer") {
		m := f.mapping("name", "peerASN", "peerAddress", "authPassword", "peerPort", "ebgpMultihop", "ttlSecurity")
		m.require("name", "peerASN", "peerAddress")
		peer := readSession(m, "peerAddress", "peerASN")
		peer.Name = m.at("name").text()
		for _, other := range peers {
			switch {
			case peer.Address.IsValid() && other.Address == peer.Address && other.Port == peer.Port:
				f.bad(duplicateEntry, "each switch once in "+list.path, peer.Address.String()+" twice")
			case peer.Name != "" && other.Name == peer.Name:
				f.bad(duplicateEntry, "each peer name once in "+list.path, strconv.Quote(peer.Name)+" twice")
			}
		}
		peers = append(peers, peer)
	}
	return peers
}

// readSession reads the settings of one switch, in either kind. Only two keys have different names.
func readSession(m mapping, addressKey, asnKey string) Peer {
	p := Peer{
		Address:     m.at(addressKey).addr(),
		ASN:         m.at(asnKey).asn(),
		Port:        uint16(m.at("peerPort").number(badValue, 1, 65535)),
		MultihopTTL: uint8(m.at("ebgpMultihop").number(badValue, 2, 255)),
		TTLSecurity: m.at("ttlSecurity").boolean(),
	}
	if p.TTLSecurity && p.MultihopTTL != 0 {
		m.at("ttlSecurity").bad(badValue, "either ttlSecurity or ebgpMultihop"+m.inPath(), "both")
	}
	if auth := m.at("authPassword"); !auth.absent() {
		ref := auth.mapping("secretKeyRef")
		ref.require("secretKeyRef")
		if key := ref.at("secretKeyRef").mapping("name", "key"); !key.absent() {
			key.require("name", "key")
			p.Password = &SecretKey{Name: key.at("name").name(), Key: key.at("key").text()}
		}
	}
	return p
}

// strictSpec returns the spec of one of our kinds, in which every key is known.
func strictSpec(root mapping, known ...string) mapping {
	root.mapping(objectKeys...)
	root.at("metadata").mapping(metadataKeys...)
	root.require("spec")
	return root.at("spec").mapping(known...)
}
