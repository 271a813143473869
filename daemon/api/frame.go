package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
)

// maxFiles bounds the descriptors of one message. The first is used, and the rest are closed.
const maxFiles = 4

const lengthBytes = 4

var errTooLong = errors.New("message is longer than allowed")

// send writes one message; file may be nil.
func send(conn *net.UnixConn, body []byte, file *os.File) error {
	if len(body) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", errTooLong, len(body), MaxMessage)
	}
	frame := make([]byte, 0, lengthBytes+len(body))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body)))
	frame = append(frame, body...)
	if file == nil {
		_, err := conn.Write(frame)
		return err
	}
	n, _, err := conn.WriteMsgUnix(frame, syscall.UnixRights(int(file.Fd())), nil)
	runtime.KeepAlive(file)
	if err != nil {
		return err
	}
	// sendmsg on a stream may take only a part. The descriptor went with the first byte.
	_, err = conn.Write(frame[n:])
	return err
}

// receive reads one message and its file, which may be nil.
func receive(conn *net.UnixConn) (body []byte, file *os.File, err error) {
	defer func() {
		if err != nil && file != nil {
			_ = file.Close()
			file = nil
		}
	}()
	var length [lengthBytes]byte
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := conn.ReadMsgUnix(length[:], oob)
	if oobn > 0 {
		var ferr error
		if file, ferr = firstFile(oob[:oobn]); ferr != nil && err == nil {
			return nil, file, ferr
		}
	}
	if err != nil {
		return nil, file, err
	}
	if n == 0 {
		return nil, file, io.EOF
	}
	if _, err := io.ReadFull(conn, length[n:]); err != nil {
		return nil, file, fmt.Errorf("read length: %w", err)
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > MaxMessage {
		return nil, file, fmt.Errorf("%w: %d bytes, at most %d", errTooLong, size, MaxMessage)
	}
	body, err = readBody(conn, int(size))
	if err != nil {
		return nil, file, fmt.Errorf("read %d bytes: %w", size, err)
	}
	return body, file, nil
}

// readBody grows its buffer as bytes arrive, so that a length alone takes no memory.
func readBody(r io.Reader, size int) ([]byte, error) {
	const step = 64 << 10
	body := make([]byte, 0, min(size, step))
	for len(body) < size {
		n := min(size-len(body), step)
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(r, body[len(body)-n:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

// firstFile keeps the first descriptor of the control messages and closes the rest. The kernel has set
// close-on-exec on them (MSG_CMSG_CLOEXEC, net package).
func firstFile(oob []byte) (*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var file *os.File
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		for _, fd := range fds {
			if file != nil {
				_ = syscall.Close(fd)
				continue
			}
			file = os.NewFile(uintptr(fd), "netns")
		}
	}
	return file, nil
}
