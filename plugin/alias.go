package plugin

import (
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
)

// maxAlias is the longest alias of a link in bytes (linux/if.h: IFALIASZ less one).
const maxAlias = 255

// aliasOf is what ip link shows beside the host end's name: whose it is.
//
//	pod default/till-1 network lan attachment 64dfdb43a7f2/eth0
//
// A store that is made anew takes the names from there (see named). Runtimes choose the names, so
// that one that would not be read back is left out.
func aliasOf(l ipam.Lease) string {
	network, _, _ := strings.Cut(l.Network, "/")
	text := "network " + network + " attachment " + l.Attachment.String()
	if isIdentifier(l.Pod.Namespace) && isIdentifier(l.Pod.Name) {
		if long := "pod " + l.Pod.String() + " " + text; len(long) <= maxAlias {
			return long
		}
	}
	if !isIdentifier(network) || len(text) > maxAlias {
		return ""
	}
	return text
}

// named reads aliasOf back. The link's name is the proof: ok is false for an alias that somebody
// else wrote.
func named(link, alias string) (l ipam.Lease, ok bool) {
	l = parseAlias(alias)
	return l, l.Attachment.IfName != "" && isIdentifier(l.Network) && HostLink(l.Attachment) == link
}

// parseAlias takes the words of an alias, whoever wrote it.
func parseAlias(alias string) (l ipam.Lease) {
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
		}
	}
	return l
}
