package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// The layout of a bbolt file (bbolt internal/common: page.go, meta.go, inode.go), as far as it is
// needed to see that a file is whole before bbolt maps it: bbolt trusts its pages. A branch
// that points back at itself would overflow the stack, which no recover catches; a free list
// that names a page in use would let the next commit overwrite live records.
const (
	pageHeader    = 16 // id, flags, count, overflow
	elementSize   = 16 // of a branch and of a leaf
	bucketHeader  = 16 // root page, sequence
	metaSum       = 56 // checksum's offset in a meta page's body
	flagBranch    = 0x01
	flagLeaf      = 0x02
	flagMeta      = 0x04
	flagFreelist  = 0x10
	flagBucket    = 0x01 // of a leaf element
	metaMagic     = 0xED0CDAED
	metaVersion   = 2
	minPageSize   = 1 << 10
	maxPageSize   = 1 << 24
	maxDepth      = 16 // a tree of 4 KiB pages that deep holds more than disks do
	freelistCount = 0xFFFF
)

// depth of an inspection.
type depth int

const (
	// branches reads meta pages, free list, branches and the root: some dozen pages of a file
	// with 250 leases, a hundredth of a large one.
	branches depth = iota
	// leaves reads every page.
	leaves
)

// inspect reports whether the bbolt file f is whole, without mapping it. Its errors wrap
// ErrDamaged when the content is at fault.
func inspect(f *os.File, d depth) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("not a regular file but %s", info.Mode().Type())
	}
	in := &inspection{f: f, size: info.Size(), depth: d}
	if err := in.readMeta(); err != nil {
		return err
	}
	return in.run()
}

// inspectTx is inspect of every page that tx sees, beside a running writer: the writer keeps its
// hands off the pages of open transactions.
func inspectTx(f *os.File, tx *bbolt.Tx) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var first firstPage
	if _, err := tx.WriteTo(&first); first == nil {
		return fmt.Errorf("read the meta page of a transaction: %w", err)
	}
	in := &inspection{f: f, size: info.Size(), depth: leaves}
	if in.meta, err = in.parseMeta(first, 0); err != nil {
		return err
	}
	in.pageSize = int64(in.meta.pageSize)
	return in.run()
}

// firstPage takes the first page that tx.WriteTo writes, the transaction's own meta page.
type firstPage []byte

var errEnough = errors.New("enough")

func (p *firstPage) Write(b []byte) (int, error) {
	*p = bytes.Clone(b)
	return 0, errEnough
}

type inspection struct {
	f     *os.File
	size  int64
	depth depth

	pageSize int64
	meta     metaPage
	used     []uint64 // bit set of pages, free ones too
	n        uint64   // pages in used
	unread   []uint64 // leaves that were not read: overflow pages are not known
}

func (in *inspection) bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

type metaPage struct {
	pageSize                   uint32
	root, freelist, pages, txn uint64
}

func (in *inspection) run() error {
	if in.meta.pages > uint64(in.size/in.pageSize) {
		return in.bad("the file ends at %d bytes, its %d pages of %d bytes do not fit: truncated", in.size, in.meta.pages, in.pageSize)
	}
	in.used = make([]uint64, in.meta.pages/64+1)
	in.used[0], in.n = 3, 2 // the meta pages
	if err := in.readFreelist(); err != nil {
		return err
	}
	if err := in.tree(in.meta.root, true, 0); err != nil {
		return err
	}
	if in.n != in.meta.pages {
		// Long records take overflow pages, which only their page's header tells.
		for _, id := range in.unread {
			h, err := in.header(id)
			if err != nil {
				return err
			}
			for i := range uint64(h.overflow) {
				if err := in.mark(id + 1 + i); err != nil {
					return err
				}
			}
		}
	}
	if in.n != in.meta.pages {
		return in.bad("%d of %d pages are neither used nor free", in.meta.pages-in.n, in.meta.pages)
	}
	return nil
}

// readMeta reads both meta pages. bbolt goes back to the other one when the last is damaged;
// that would take back a commit that was acknowledged, so both must be whole: a meta page fills
// less than a disk's sector and is not torn by a power cut.
func (in *inspection) readMeta() error {
	first, err := in.readMetaAt(0, 0)
	if err != nil {
		return err
	}
	in.pageSize = int64(first.pageSize)
	second, err := in.readMetaAt(in.pageSize, 1)
	if err != nil {
		return err
	}
	in.meta = first
	if second.txn > first.txn {
		in.meta = second
	}
	if first.pageSize != second.pageSize || first.txn+1 != second.txn && second.txn+1 != first.txn {
		return in.bad("the two meta pages are of different times, transactions %d and %d", first.txn, second.txn)
	}
	return nil
}

func (in *inspection) readMetaAt(off int64, id uint64) (metaPage, error) {
	buf := make([]byte, pageHeader+metaSum+8)
	if _, err := in.f.ReadAt(buf, off); err == io.EOF {
		return metaPage{}, in.bad("%d bytes are too few for a store", in.size)
	} else if err != nil {
		return metaPage{}, err
	}
	return in.parseMeta(buf, id)
}

func (in *inspection) parseMeta(buf []byte, id uint64) (metaPage, error) {
	h, body := parseHeader(buf), buf[pageHeader:]
	sum := fnv.New64a()
	sum.Write(body[:metaSum])
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(body[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(body[at:]) }
	switch {
	case u32(0) != metaMagic:
		return metaPage{}, in.bad("meta page %d is not a bbolt meta page", id)
	case u32(4) != metaVersion:
		return metaPage{}, in.bad("meta page %d has version %d, not %d", id, u32(4), metaVersion)
	case u64(metaSum) != sum.Sum64():
		return metaPage{}, in.bad("meta page %d: checksum differs", id)
	case h.id != id || h.flags != flagMeta:
		return metaPage{}, in.bad("meta page %d: its header is of page %d, flags %#x", id, h.id, h.flags)
	}
	m := metaPage{pageSize: u32(8), root: u64(16), freelist: u64(32), pages: u64(40), txn: u64(48)}
	if m.pageSize < minPageSize || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0 {
		return metaPage{}, in.bad("meta page %d: page size %d", id, m.pageSize)
	}
	return m, nil
}

type header struct {
	id       uint64
	flags    uint16
	count    int
	overflow uint32
}

func parseHeader(b []byte) header {
	return header{binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:])), binary.NativeEndian.Uint32(b[12:])}
}

// header reads the header of page id and checks that the page lies in the file.
func (in *inspection) header(id uint64) (header, error) {
	if id < 2 || id >= in.meta.pages {
		return header{}, in.bad("page %d is out of bounds, there are %d", id, in.meta.pages)
	}
	buf := make([]byte, pageHeader)
	if _, err := in.f.ReadAt(buf, int64(id)*in.pageSize); err != nil {
		return header{}, err
	}
	return in.checkHeader(id, buf)
}

func (in *inspection) checkHeader(id uint64, buf []byte) (header, error) {
	h := parseHeader(buf)
	if h.id != id {
		return h, in.bad("page %d says that it is page %d", id, h.id)
	}
	if uint64(h.overflow) >= in.meta.pages-id {
		return h, in.bad("page %d: %d overflow pages, there are %d pages", id, h.overflow, in.meta.pages)
	}
	return h, nil
}

// page reads a page with its overflow and marks it used.
func (in *inspection) page(id uint64) (header, []byte, error) {
	if id < 2 || id >= in.meta.pages {
		return header{}, nil, in.bad("page %d is out of bounds, there are %d", id, in.meta.pages)
	}
	buf := make([]byte, in.pageSize)
	if _, err := in.f.ReadAt(buf, int64(id)*in.pageSize); err != nil {
		return header{}, nil, err
	}
	h, err := in.checkHeader(id, buf)
	if err != nil {
		return h, nil, err
	}
	for i := range uint64(h.overflow) + 1 {
		if err := in.mark(id + i); err != nil {
			return h, nil, err
		}
	}
	if h.overflow > 0 {
		rest := make([]byte, int64(h.overflow)*in.pageSize)
		if _, err := in.f.ReadAt(rest, int64(id+1)*in.pageSize); err != nil {
			return h, nil, err
		}
		buf = append(buf, rest...)
	}
	return h, buf, nil
}

func (in *inspection) mark(id uint64) error {
	if id < 2 || id >= in.meta.pages {
		return in.bad("page %d is out of bounds, there are %d", id, in.meta.pages)
	}
	if in.used[id/64]&(1<<(id%64)) != 0 {
		return in.bad("page %d is used twice, or used and free", id)
	}
	in.used[id/64] |= 1 << (id % 64)
	in.n++
	return nil
}

func (in *inspection) readFreelist() error {
	h, buf, err := in.page(in.meta.freelist)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if h.flags != flagFreelist {
		return in.bad("page %d is not the free list, flags %#x", h.id, h.flags)
	}
	ids, n := buf[pageHeader:], uint64(h.count)
	if n == freelistCount {
		n, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return in.bad("free list: %d pages do not fit", n)
	}
	var last uint64
	for i := range n {
		id := binary.NativeEndian.Uint64(ids[i*8:])
		if id <= last {
			return in.bad("free list: page %d after %d", id, last)
		}
		if err := in.mark(id); err != nil {
			return fmt.Errorf("free list: %w", err)
		}
		last = id
	}
	return nil
}

// tree reads the tree below page id. root says that it is the tree of buckets, whose leaves are
// always read.
func (in *inspection) tree(id uint64, root bool, level int) error {
	if level > maxDepth {
		return in.bad("page %d: the tree is deeper than %d", id, maxDepth)
	}
	h, buf, err := in.page(id)
	if err != nil {
		return err
	}
	switch h.flags {
	case flagLeaf:
		return in.leaf(h, buf, root)
	case flagBranch:
	default:
		return in.bad("page %d is neither branch nor leaf, flags %#x", id, h.flags)
	}
	if h.count == 0 {
		return in.bad("page %d: a branch without children", id)
	}
	var last []byte
	below := uint16(0)
	for i := range h.count {
		e := buf[pageHeader+i*elementSize:]
		if (i+1)*elementSize+pageHeader > len(buf) {
			return in.bad("page %d: %d elements do not fit", id, h.count)
		}
		key, ok := slice(e, uint64(binary.NativeEndian.Uint32(e)), uint64(binary.NativeEndian.Uint32(e[4:])))
		if !ok || i > 0 && bytes.Compare(last, key) >= 0 {
			return in.bad("page %d: key %d is out of bounds or order", id, i)
		}
		last = key
		child := binary.NativeEndian.Uint64(e[8:])
		if i == 0 {
			ch, err := in.header(child)
			if err != nil {
				return err
			}
			below = ch.flags // all children of a branch are of one kind
		}
		if below == flagLeaf && !root && in.depth == branches {
			if err := in.mark(child); err != nil {
				return err
			}
			in.unread = append(in.unread, child)
			continue
		}
		if err := in.tree(child, root, level+1); err != nil {
			return err
		}
	}
	return nil
}

// slice cuts n bytes at pos, counted from the element as bbolt does.
func slice(e []byte, pos, n uint64) ([]byte, bool) {
	if pos > uint64(len(e)) || n > uint64(len(e))-pos {
		return nil, false
	}
	return e[pos : pos+n], true
}

// leaf checks a leaf page and goes down into the buckets it holds.
func (in *inspection) leaf(h header, buf []byte, root bool) error {
	var last []byte
	for i := range h.count {
		if (i+1)*elementSize+pageHeader > len(buf) {
			return in.bad("page %d: %d elements do not fit", h.id, h.count)
		}
		e := buf[pageHeader+i*elementSize:]
		flags, pos := binary.NativeEndian.Uint32(e), uint64(binary.NativeEndian.Uint32(e[4:]))
		ksize, vsize := uint64(binary.NativeEndian.Uint32(e[8:])), uint64(binary.NativeEndian.Uint32(e[12:]))
		key, ok := slice(e, pos, ksize)
		if !ok || len(key) == 0 || i > 0 && bytes.Compare(last, key) >= 0 {
			return in.bad("page %d: key %d is out of bounds or order", h.id, i)
		}
		last = key
		value, ok := slice(e, pos+ksize, vsize)
		isBucket := flags == flagBucket
		if !ok || flags&^flagBucket != 0 || isBucket != root {
			return in.bad("page %d: value %d is out of bounds or of the wrong kind", h.id, i)
		}
		if !isBucket {
			continue
		}
		if len(value) < bucketHeader {
			return in.bad("page %d: bucket %q is too short", h.id, key)
		}
		if page := binary.NativeEndian.Uint64(value); page != 0 {
			if err := in.tree(page, false, 0); err != nil {
				return fmt.Errorf("bucket %s: %w", key, err)
			}
		} else if err := in.inline(string(key), value[bucketHeader:]); err != nil {
			return err
		}
	}
	return nil
}

// inline checks a small bucket, which is a leaf page inside a value.
func (in *inspection) inline(name string, buf []byte) error {
	if len(buf) < pageHeader {
		return in.bad("bucket %s is too short", name)
	}
	h := parseHeader(buf)
	if h.flags != flagLeaf || h.id != 0 || h.overflow != 0 {
		return in.bad("bucket %s: not an inline leaf", name)
	}
	if err := in.leaf(h, buf, false); err != nil {
		return fmt.Errorf("bucket %s: %w", name, err)
	}
	return nil
}
