package routes

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Deleting the table must not lose a pod that AddMasq notes at the same time, perhaps from another
// process. nftables counts its generations: a transaction that names the generation it was made
// for is refused when another one came between (net/netfilter/nfnetlink.c: nfnetlink_rcv_batch).

// natTries is how often the table is read again because something in nftables changed.
const natTries = 10

// deleteUnusedTable deletes the table when no pod is in it; gone is false when there is one.
func (k *Kernel) deleteUnusedTable() (gone bool, err error) {
	c, err := k.netfilter()
	if err != nil {
		return false, err
	}
	for range natTries {
		generation, err := c.generation()
		if err != nil {
			return false, err
		}
		content, err := k.readNAT()
		if err != nil || !content.exists || len(content.podAddrs) > 0 {
			return !content.exists, err
		}
		if err = c.deleteTable(generation); !errors.Is(err, unix.ERESTART) {
			return err == nil || errors.Is(err, unix.ENOENT), err
		}
	}
	return false, fmt.Errorf("nftables changed %d times while table inet %s was read; it is tried again by the next sync", natTries, tableName)
}

func nftMessage(typ uint16, family uint8, subsystem uint16) message {
	return newMessage(typ, 0, binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, subsystem))
}

// generation is the number of the last transaction.
func (c *conn) generation() (uint32, error) {
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	body, err := c.get(nftMessage(getGen, unix.AF_UNSPEC, 0))
	if err != nil {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	if len(body) >= 4 {
		for typ, v := range attrs(body[4:]) {
			if typ == unix.NFTA_GEN_ID && len(v) == 4 {
				return binary.BigEndian.Uint32(v), nil
			}
		}
	}
	return 0, errors.New("generation of nftables: the kernel's answer is not understood")
}

// deleteTable deletes the table if generation still is the last one, else the error is ERESTART.
func (c *conn) deleteTable(generation uint32) (err error) {
	const delTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	begin := nftMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES).
		attr(unix.NFNL_BATCH_GENID, binary.BigEndian.AppendUint32(nil, generation))
	del := nftMessage(delTable, unix.NFPROTO_INET, 0).attrString(unix.NFTA_TABLE_NAME, tableName)
	binary.NativeEndian.PutUint16(del[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	end := nftMessage(unix.NFNL_MSG_BATCH_END, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)

	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seq + 1
	var out []byte
	for _, m := range []message{begin, del, end} {
		out = append(out, c.stamp(m)...)
	}
	if err := c.send(out); err != nil {
		return err
	}
	for answered := false; !answered; {
		rerr := c.receive(func(h unix.NlMsghdr, body []byte) {
			if h.Type == unix.NLMSG_ERROR && h.Seq >= first && h.Seq <= c.seq && !answered {
				err, answered = ackError(h, body), true
			}
		})
		if rerr != nil {
			return rerr
		}
	}
	return err
}
