package ipam

import "net/netip"

// usage is Usage inside a transaction. Areas count what is listed under them; only those of a
// pool that no Allocate used since it, or one that overlaps it, came are walked.
func (t *txn) usage(l layout) (Usage, error) {
	var u Usage
	for _, set := range l {
		for _, a := range set {
			for _, s := range a.spans {
				u.Total = min(u.Total+s.size(), sizeCap)
			}
			s, current, err := t.registeredAs(a)
			if err != nil {
				return Usage{}, err
			}
			n := counts{}
			if current {
				n = s.counts
			} else if n, err = t.walk(a); err != nil {
				return Usage{}, err
			}
			u.Used += n.held
			u.Remembered += n.remembered
		}
	}
	if u.Used > u.Total || u.Used > t.state.held {
		return Usage{}, t.meta.damaged([]byte(keyState), "counts fewer addresses than are held")
	}
	u.Free = u.Total - u.Used
	u.Outside = t.state.held - u.Used
	return u, nil
}

func (t *txn) walk(a area) (counts, error) {
	var n counts
	for _, s := range a.spans {
		err := t.eachEntry(s, func(_ netip.Addr, e entry) (bool, error) {
			n.held += e.counts().held
			n.remembered += e.counts().remembered
			return true, nil
		})
		if err != nil {
			return counts{}, err
		}
	}
	return n, nil
}

// counts of addresses.
type counts struct{ held, remembered uint64 }

func (e entry) counts() counts {
	switch {
	case e.held:
		return counts{held: 1}
	case e.memory != "":
		return counts{remembered: 1}
	}
	return counts{}
}

// count moves an address from what it was to what it is in the counts of its areas.
func (t *txn) count(last, next entry) error {
	t.state.held += next.counts().held - last.counts().held
	if last.known() && last.home != 0 {
		s, err := t.numbered(last.home)
		if err != nil {
			return err
		}
		s.held -= last.counts().held
		s.remembered -= last.counts().remembered
	}
	if next.home != 0 {
		s, err := t.numbered(next.home)
		if err != nil {
			return err
		}
		s.held += next.counts().held
		s.remembered += next.counts().remembered
	}
	return nil
}
