package plugin

import (
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
)

// maxAlias is the longest alias of a link in bytes (linux/if.h: IFALIASZ less one).
const maxAlias = 255

// aliasOf is what ip link shows beside the host end's name: whose it is, and in which directory the
// store with its lease lies.
//
//	pod default/till-1 network lan attachment 64dfdb43a7f2/eth0 store /var/lib/edgeway
//
// A rebuilt store takes the names from there (see named), and a store deletes no link of another
// one. Runtimes and operators choose the names: an alias that would not be read back is left out.
func aliasOf(l ipam.Lease, store string) string {
	network, _, _ := strings.Cut(l.Network, "/")
	text := "network " + network + " attachment " + l.Attachment.String()
	if store != "" {
		text += " store " + store
	}
	if !isIdentifier(network) || len(strings.Fields(store)) > 1 || len(text) > maxAlias {
		return ""
	}
	if long := "pod " + l.Pod.String() + " " + text; isIdentifier(l.Pod.Namespace) && isIdentifier(l.Pod.Name) && len(long) <= maxAlias {
		return long
	}
	return text
}

// named reads aliasOf back. The link's name is the proof: ok is false for an alias that somebody
// else wrote.
func named(link, alias string) (l ipam.Lease, ok bool) {
	l, _ = parseAlias(alias)
	return l, l.Attachment.IfName != "" && isIdentifier(l.Network) && HostLink(l.Attachment) == link
}

// parseAlias takes the words of an alias, whoever wrote it. store is "" in those of earlier versions.
func parseAlias(alias string) (l ipam.Lease, store string) {
	words := strings.Fields(alias)
	for i := 0; i+1 < len(words); i += 2 {
		value := words[i+1]
		switch words[i] {
		case "pod":
			l.Pod.Namespace, l.Pod.Name, _ = strings.Cut(value, "/")
		case "network":
			l.Network = value
		case "attachment":
			l.Attachment.ContainerID, l.Attachment.IfName, _ = strings.Cut(value, "/")
		case "store":
			store = value
		}
	}
	return l, store
}
