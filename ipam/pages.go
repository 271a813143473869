package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"golang.org/x/sys/unix"
)

// bbolt trusts the lengths and page numbers that it reads (its internal/common: page.go, meta.go,
// inode.go). A branch that leads to itself makes a cursor's stack grow for ever. A number of overflow or
// free pages, or the length of a value, is allocated as read. No recover helps when memory runs out. So
// every page is checked before bbolt maps the file: its lengths fill the page, and each page in use is
// the child of exactly one other page, so the pages form a tree. The keys of a tree are in order, as
// table.get requires. Values are not read. The check takes some 40 microseconds for 250 leases.
const (
	pageHead     = 16 // id uint64, flags, count uint16, overflow uint32
	elementSize  = 16 // branch: pos, ksize uint32, id uint64; leaf: flags, pos, ksize, vsize uint32
	bucketHead   = 16 // root page, sequence uint64; root 0: an inline leaf page follows
	metaSize     = 64 // magic, version, page size, flags uint32, root, sequence, freelist, pages, txid, checksum uint64
	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
	flagBucket   = 0x01 // of a leaf's element
	metaMagic    = 0xED0CDAED
	metaVersion  = 2
	minPageSize  = 1 << 10
	maxPageSize  = 1 << 24
	countFollows = 0xFFFF // free list: the first number is the count
)

// inspect reports whether bbolt can read f safely. Its errors wrap ErrDamaged when the content is at
// fault. Nobody may write to f meanwhile.
func inspect(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: move it away", f.Name())
	}
	if info.Size() < 2*minPageSize {
		return damagedf("%d bytes are too few for a store", info.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", f.Name(), err)
	}
	err = guarded(func() error { return inspectPages(data) })
	return errors.Join(err, unix.Munmap(data))
}

func damagedf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func u16(b []byte) uint64 { return uint64(binary.NativeEndian.Uint16(b)) }
func u32(b []byte) uint64 { return uint64(binary.NativeEndian.Uint32(b)) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// pages records what an inspection found out about each page.
type pages struct {
	data []byte
	size uint64 // of a page
	free []bool
	kept []bool // a meta page or part of the free list
	refs []bool // the child of a page

	roots []uint64 // of buckets
}

func inspectPages(data []byte) error {
	p := &pages{data: data}
	m, err := readMeta(data)
	if err != nil {
		return err
	}
	p.size = u32(m[8:])
	root, freelist, n := u64(m[16:]), u64(m[32:]), u64(m[40:])
	if n > uint64(len(data))/p.size {
		return damagedf("the file has %d bytes, too few for its %d pages of %d bytes: it was truncated", len(data), n, p.size)
	}
	p.free, p.kept, p.refs = make([]bool, n), make([]bool, n), make([]bool, n)
	p.kept[0], p.kept[1] = true, true
	if err := p.readFreelist(freelist); err != nil {
		return err
	}
	if err := p.refer(root, 0); err != nil {
		return err
	}
	for id := uint64(0); id < n; id++ {
		if p.free[id] || p.kept[id] {
			continue
		}
		if id, err = p.page(id); err != nil {
			return err
		}
	}
	for _, id := range append(p.roots, root) {
		if err := p.order(id, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// order checks that the keys below page id lie from low to below high; nil: no limit. The pages are known
// to be a tree by then. A key below the wrong branch is never found, and its address would be leased
// again.
func (p *pages) order(id uint64, low, high []byte) error {
	b, err := p.body(id)
	if err != nil {
		return err
	}
	n := u16(b[10:])
	key := func(i uint64) []byte {
		e := b[pageHead+i*elementSize:]
		if u16(b[8:]) == flagLeaf {
			return e[u32(e[4:]):][:u32(e[8:])]
		}
		return e[u32(e):][:u32(e[4:])]
	}
	switch {
	case n == 0: // the root of an empty bucket
		return nil
	case low != nil && bytes.Compare(key(0), low) < 0 || high != nil && bytes.Compare(key(n-1), high) >= 0:
		return damagedf("page %d has keys that do not belong below its parent", id)
	case u16(b[8:]) == flagLeaf:
		return nil
	}
	for i := range n {
		below := high
		if i+1 < n {
			below = key(i + 1)
		}
		if err := p.order(u64(b[pageHead+i*elementSize+8:]), key(i), below); err != nil {
			return err
		}
	}
	return nil
}

// readMeta returns the body of the newer meta page. bbolt would go back to the older page when the newer
// is damaged, and so undo a commit that was acknowledged. Both pages must therefore be whole: a meta page
// is smaller than a disk sector, and a power cut does not tear it.
func readMeta(data []byte) ([]byte, error) {
	first, err := metaAt(data, 0, 0)
	if err != nil {
		return nil, err
	}
	second, err := metaAt(data, u32(first[8:]), 1)
	if err != nil {
		return nil, err
	}
	a, b := u64(first[48:]), u64(second[48:])
	switch {
	case u32(first[8:]) != u32(second[8:]) || a+1 != b && b+1 != a:
		return nil, damagedf("the two meta pages are of transactions %d and %d, which do not follow each other", a, b)
	case a > b:
		return first, nil
	}
	return second, nil
}

func metaAt(data []byte, at, id uint64) ([]byte, error) {
	if at+pageHead+metaSize > uint64(len(data)) {
		return nil, damagedf("%d bytes are too few for a store", len(data))
	}
	head, m := data[at:], data[at+pageHead:][:metaSize]
	sum := fnv.New64a()
	sum.Write(m[:metaSize-8])
	size := u32(m[8:])
	switch {
	case u32(m) != metaMagic || u32(m[4:]) != metaVersion:
		return nil, damagedf("page %d is not a meta page of bbolt, version %d", id, metaVersion)
	case u64(m[metaSize-8:]) != sum.Sum64():
		return nil, damagedf("meta page %d: checksum differs", id)
	case u64(head) != id || u16(head[8:]) != flagMeta:
		return nil, damagedf("meta page %d: its header is of page %d, flags %#x", id, u64(head), u16(head[8:]))
	case size < minPageSize || size > maxPageSize || size&(size-1) != 0 || u64(m[40:]) < 4:
		return nil, damagedf("meta page %d: %d pages of %d bytes", id, u64(m[40:]), size)
	}
	return m, nil
}

// body returns the content of page id, including its overflow pages.
func (p *pages) body(id uint64) ([]byte, error) {
	n := uint64(len(p.free))
	if id < 2 || id >= n {
		return nil, damagedf("page %d is out of bounds, the file has %d pages", id, n)
	}
	head := p.data[id*p.size:]
	if u64(head) != id {
		return nil, damagedf("page %d says that it is page %d", id, u64(head))
	}
	over := u32(head[12:])
	if over >= n-id {
		return nil, damagedf("page %d has %d overflow pages, the file has %d pages", id, over, n)
	}
	return head[:(over+1)*p.size], nil
}

func (p *pages) readFreelist(id uint64) error {
	b, err := p.body(id)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if u16(b[8:]) != flagFreelist {
		return damagedf("page %d is not the free list, flags %#x", id, u16(b[8:]))
	}
	for i := range uint64(len(b)) / p.size {
		p.kept[id+i] = true
	}
	n, ids := u16(b[10:]), b[pageHead:]
	if n == countFollows {
		n, ids = u64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return damagedf("free list: %d pages do not fit", n)
	}
	for i := range n {
		x := u64(ids[i*8:])
		if x >= uint64(len(p.free)) || p.kept[x] || p.free[x] {
			return damagedf("free list: page %d is out of bounds, in use or listed twice", x)
		}
		p.free[x] = true
	}
	return nil
}

// refer records page id as the child of page by.
func (p *pages) refer(id, by uint64) error {
	if id >= uint64(len(p.free)) || p.free[id] || p.kept[id] || p.refs[id] {
		return damagedf("page %d leads to page %d, which is out of bounds, free or the child of another page", by, id)
	}
	p.refs[id] = true
	return nil
}

// page checks one page in use and returns its last overflow page. A parent may come after its child, so a
// page without a parent is not noticed. Such a page is harmless: nothing leads to it.
func (p *pages) page(id uint64) (last uint64, err error) {
	b, err := p.body(id)
	if err != nil {
		return 0, err
	}
	last = id + uint64(len(b))/p.size - 1
	for x := id + 1; x <= last; x++ {
		if p.free[x] || p.kept[x] || p.refs[x] {
			return 0, damagedf("page %d: its overflow page %d is free, or another page's", id, x)
		}
		p.kept[x] = true // not the child of another page
	}
	switch flags, n := u16(b[8:]), u16(b[10:]); {
	case flags == flagLeaf:
		return last, p.leaf(id, b)
	case flags != flagBranch || n == 0 || pageHead+n*elementSize > uint64(len(b)):
		return 0, damagedf("page %d: flags %#x with %d elements", id, flags, n)
	default:
		k := keysOf(b)
		for i := range n {
			e := b[pageHead+i*elementSize:]
			if err := k.read(i, u32(e), u32(e[4:]), 0); err != nil {
				return 0, fmt.Errorf("page %d: %w", id, err)
			}
			if err := p.refer(u64(e[8:]), id); err != nil {
				return 0, err
			}
		}
	}
	return last, nil
}

// keys reads the elements of a page one after the other. bbolt writes keys and values behind the elements
// without gaps, so a changed count or length shows.
type keys struct {
	page []byte
	next uint64 // where the next key must begin
	last []byte
}

func keysOf(page []byte) keys {
	return keys{page: page, next: pageHead + u16(page[10:])*elementSize}
}

// read checks element i. Its key lies at pos bytes from the element, and its value follows the key.
func (k *keys) read(i, pos, ksize, vsize uint64) error {
	at := k.next
	k.next += ksize + vsize
	if ksize == 0 || at != pageHead+i*elementSize+pos || k.next > uint64(len(k.page)) {
		return damagedf("element %d is in the wrong place", i)
	}
	key := k.page[at:][:ksize]
	if k.last != nil && bytes.Compare(k.last, key) >= 0 {
		return damagedf("key %d is out of order", i)
	}
	k.last = key
	return nil
}

// leaf checks a leaf page, or a leaf inside the value of an inline bucket, and the buckets below it.
func (p *pages) leaf(id uint64, b []byte) error {
	n := u16(b[10:])
	if pageHead+n*elementSize > uint64(len(b)) {
		return damagedf("page %d: %d elements do not fit", id, n)
	}
	k := keysOf(b)
	for i := range n {
		e := b[pageHead+i*elementSize:]
		flags, pos, ksize, vsize := u32(e), u32(e[4:]), u32(e[8:]), u32(e[12:])
		if err := k.read(i, pos, ksize, vsize); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		if flags&flagBucket == 0 {
			continue
		}
		v := e[pos+ksize:][:vsize]
		switch {
		case vsize < bucketHead:
			return damagedf("page %d: bucket %d is too short", id, i)
		case u64(v) != 0:
			if err := p.refer(u64(v), id); err != nil {
				return err
			}
			p.roots = append(p.roots, u64(v))
		case vsize < bucketHead+pageHead || u16(v[bucketHead+8:]) != flagLeaf:
			return damagedf("page %d: bucket %d is not an inline leaf", id, i)
		default:
			if err := p.leaf(id, v[bucketHead:]); err != nil {
				return err
			}
		}
	}
	return nil
}
