package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// rivalsAfter is how old the look at other EdgeNodes may be. A look reads all of them, some 4 KB each with their status:
// among 500 nodes 2 MB. The node that was written later has found the conflict long before.
const rivalsAfter = 6 * time.Hour

// rivals adds to items the EdgeNodes of other nodes that have an address of this node's one. Only a person writes one
// address twice: a cloud does not. The list is read from etcd after this node's own EdgeNode was. Of two EdgeNodes that
// were written at the same time, the later one finds the earlier one, and no address is granted twice. The earlier one
// hears of the later one when it is read again.
func (k *kubernetes) rivals(ctx context.Context, c *Connection, f *feed, items map[string]told) error {
	own := items[f.name].statement.object.edgeNode
	if f.kind.kind != kindEdgeNode || own == nil || own.Uplinks == nil || own.Uplinks.Provider != ProviderStatic {
		f.rivalsAt = time.Time{}
		return nil
	}
	q := f.query("")
	for {
		meta, err := k.page(ctx, c, f.kind, q, func(it item) {
			if it.name == f.name {
				return
			}
			other := it.told(f.kind, f.items)
			if e := other.statement.object.edgeNode; e != nil && e.Uplinks.overlap(*own.Uplinks) {
				items[it.name] = other
			}
		})
		if err != nil {
			return fmt.Errorf("EdgeNodes of other nodes: %w", err)
		}
		if meta.Continue == "" {
			break
		}
		q.Set("continue", meta.Continue)
	}
	f.rivalsAt = k.clock()
	return nil
}

// met notes this node's EdgeNode, which has changed, with its rivals.
func (k *kubernetes) met(ctx context.Context, c *Connection, f *feed, own told) error {
	items := map[string]told{f.name: own}
	if err := k.rivals(ctx, c, f, items); err != nil {
		return err
	}
	k.replaced(f, items)
	return nil
}

// outdated reports whether the other EdgeNodes must be read again. A conflict that is known is looked at more often: it
// may be over.
func (k *kubernetes) outdated(f *feed) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !f.rivalsAt.IsZero() && (len(f.items) > 1 || k.clock().Sub(f.rivalsAt) > rivalsAfter)
}

// overlap reports whether both have an address for pods, or the own address of an interface that is one for pods.
func (u *Uplinks) overlap(o Uplinks) bool {
	if u == nil {
		return false
	}
	return slices.ContainsFunc(u.taken(), func(a AddressRange) bool {
		return slices.ContainsFunc(o.taken(), func(b AddressRange) bool { return a.Contains(b.First) || b.Contains(a.First) })
	})
}

// taken are the addresses of the interfaces and of their pods.
func (u Uplinks) taken() (all []AddressRange) {
	for _, i := range u.Interfaces {
		all = append(append(all, i.Addresses...), AddressRange{i.Address, i.Address})
	}
	return all
}
