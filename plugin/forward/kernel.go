//go:build amd64 || arm64

package forward

import "unsafe"

// syscall6 is syscall.Syscall6, which package syscall lets other packages link to. Importing syscall
// would initialise its imports, and everything that sorts before it, ahead of this package.
//
//go:linkname syscall6 syscall.Syscall6
func syscall6(number, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)

// Values that both architectures share (linux/include/uapi). A test compares them with package syscall.
const (
	eintr, eagain       = 4, 11
	oNonblock, oCloexec = 0x800, 0x80000
	afUnix              = 1
	sockStream          = 1
	solSocket           = 1
	scmRights           = 1
	shutWR              = 1
	msgNosignal         = 0x4000
	pollIn, pollOut     = 0x1, 0x4
	atEmptyPath         = 0x1000
	statxType           = 0x1
	sIFMT, sIFCHR       = 0xf000, 0x2000
	// maxPath is the longest path of a socket in bytes, with the final NUL (linux/un.h).
	maxPath = 108
)

// kernel is the memory that system calls read and write. It lies beside the buffer: a page of the heap
// costs a page fault, and a larger stack costs ten.
type kernel struct {
	// patience is the time that is left for the present step. The kernel counts it down in each wait
	// (ppoll(2), "C library/kernel differences").
	patience struct{ seconds, nanoseconds int64 } // struct timespec
	poll     struct {                             // struct pollfd (asm-generic/poll.h)
		fd              int32
		events, revents int16
	}
	address struct { // struct sockaddr_un (linux/un.h)
		family uint16
		path   [maxPath]byte
	}
	message struct { // struct msghdr and its parts (linux/socket.h)
		name        uintptr
		nameBytes   uint64
		vector      *struct{}
		vectors     uint64
		control     *struct{}
		controlSize uint64
		flags       uint64
	}
	vector struct { // struct iovec
		base *byte
		size uint64
	}
	rights struct { // struct cmsghdr with one descriptor (unix(7), SCM_RIGHTS)
		size        uint64
		level, kind int32
		fd          int32
		_           int32
	}
	stat struct { // struct statx (linux/stat.h)
		_            [28]byte
		mode         uint16
		_            [98]byte
		major, minor uint32 // of the device itself (rdev)
		_            [120]byte
	}
}

// open opens a file for reading, and does not wait for a FIFO's writer. path is absolute and ends in NUL.
func open(path *byte) (fd int, errno uintptr) {
	n, _, errno := syscall6(sysOpenat, 0, uintptr(unsafe.Pointer(path)), oNonblock|oCloexec, 0, 0, 0)
	return int(n), errno
}

func closeFile(fd int) { _, _, _ = syscall6(sysClose, uintptr(fd), 0, 0, 0, 0, 0) }

func read(fd int, b []byte) (n int, errno uintptr) {
	r, _, errno := syscall6(sysRead, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(r), errno
}

func write(fd int, b []byte) (n int, errno uintptr) {
	r, _, errno := syscall6(sysWrite, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(r), errno
}

func exit(status int) { _, _, _ = syscall6(sysExitGroup, uintptr(status), 0, 0, 0, 0, 0) }

// device returns the numbers of the character device behind a descriptor; ok is false for any other file.
func (k *kernel) device(fd int) (major, minor uint32, ok bool, errno uintptr) {
	_, _, errno = syscall6(sysStatx, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData("\x00"))), atEmptyPath, statxType, uintptr(unsafe.Pointer(&k.stat)), 0)
	return k.stat.major, k.stat.minor, k.stat.mode&sIFMT == sIFCHR, errno
}

// wait waits until the descriptor is ready or broken; the next call on it tells which. It returns false
// when the patience is used up.
func (k *kernel) wait(fd int, events int16) bool {
	k.poll.fd, k.poll.events = int32(fd), events
	for {
		n, _, errno := syscall6(sysPpoll, uintptr(unsafe.Pointer(&k.poll)), 1, uintptr(unsafe.Pointer(&k.patience)), 0, 0, 0)
		if errno != eintr {
			return errno == 0 && n == 1
		}
	}
}

// dial connects to a socket, and returns the descriptor even if that fails. It does not wait, so a daemon
// that accepts nobody is noticed at once.
func (k *kernel) dial(path []byte) (fd int, errno uintptr) {
	n, _, errno := syscall6(sysSocket, afUnix, sockStream|oNonblock|oCloexec, 0, 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	k.address.family = afUnix
	copy(k.address.path[:maxPath-1], path)
	for {
		_, _, errno = syscall6(sysConnect, n, uintptr(unsafe.Pointer(&k.address)), unsafe.Sizeof(k.address), 0, 0, 0)
		if errno != eintr {
			break
		}
	}
	return int(n), errno
}

// shutdown closes the sending side.
func shutdown(fd int) { _, _, _ = syscall6(sysShutdown, uintptr(fd), shutWR, 0, 0, 0, 0) }

// sendmsg sends bytes, and also the descriptor unless it is negative.
func (k *kernel) sendmsg(fd int, b []byte, descriptor int) (n int, errno uintptr) {
	k.vector.base, k.vector.size = unsafe.SliceData(b), uint64(len(b))
	m := &k.message
	m.vector, m.vectors = (*struct{})(unsafe.Pointer(&k.vector)), 1
	m.control, m.controlSize = nil, 0
	if descriptor >= 0 {
		r := &k.rights
		r.size, r.level, r.kind, r.fd = uint64(unsafe.Offsetof(r.fd)+unsafe.Sizeof(r.fd)), solSocket, scmRights, int32(descriptor)
		m.control, m.controlSize = (*struct{})(unsafe.Pointer(r)), uint64(unsafe.Sizeof(*r))
	}
	r, _, errno := syscall6(sysSendmsg, uintptr(fd), uintptr(unsafe.Pointer(m)), msgNosignal, 0, 0, 0)
	return int(r), errno
}
