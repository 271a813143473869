package plugin

import (
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
)

// maxAlias is the longest alias of a link in bytes (linux/if.h: IFALIASZ less one).
const maxAlias = 255

// aliasOf is the alias that ip link shows beside the host end's name. It names the attachment and the
// directory of the store with its lease.
//
//	pod default/till-1 network lan attachment 64dfdb43a7f2/eth0 store /var/lib/edgeway
//
// A rebuilt store reads the names from the alias (see named), and a store never deletes another store's
// links. Runtimes and operators choose the names: an alias that could not be read back is left out.
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

// named reads the alias back. The link's name is the proof: ok is false for an alias that somebody else
// wrote.
func named(link, alias string) (l ipam.Lease, ok bool) {
	l, _ = parseAlias(alias)
	return l, l.Attachment.IfName != "" && isIdentifier(l.Network) && HostLink(l.Attachment) == link
}

// parseAlias reads the words of an alias, whoever wrote it. Aliases of earlier versions name no store:
// store is "" then.
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
