package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// streamChunk is written at once, so that the kernel makes packets as large as the path carries.
	streamChunk = 64 << 10
	// streamEvery is the pause between two chunks: about 3 MB/s, which leaves a busy machine time for the rest.
	streamEvery = 20 * time.Millisecond
)

// Stream is one TCP connection through which data flows from one machine to another until Stop.
type Stream struct {
	From, To string
	Addr     netip.Addr
	listener net.Listener
	conn     net.Conn
	arrived  atomic.Int64
	stop     chan struct{}
	ended    sync.WaitGroup

	mu  sync.Mutex // guards err
	err error      // why the connection broke
}

// StartStream connects the machine to addr, an address of the machine to, and sends without end.
func (m *Machine) StartStream(to *Machine, addr netip.Addr) (*Stream, error) {
	s := &Stream{From: m.Name, To: to.Name, Addr: addr, stop: make(chan struct{})}
	err := to.Do(func() (err error) {
		s.listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: stream: %w", to.Name, err)
	}
	err = m.Do(func() (err error) {
		s.conn, err = net.DialTimeout("tcp", s.listener.Addr().String(), packetTimeout)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: stream to %s: %w", m.Name, addr, err), s.listener.Close())
	}
	s.ended.Go(s.send)
	s.ended.Go(s.receive)
	return s, nil
}

func (s *Stream) send() {
	defer s.conn.Close()
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for chunk := make([]byte, streamChunk); ; {
		if _, err := s.conn.Write(chunk); err != nil {
			s.broke(err)
			return
		}
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}

func (s *Stream) receive() {
	conn, err := s.listener.Accept()
	if err != nil {
		s.broke(err)
		return
	}
	defer conn.Close()
	for chunk := make([]byte, streamChunk); ; {
		n, err := conn.Read(chunk)
		s.arrived.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.broke(err)
			return
		}
	}
}

// broke notes an error unless the stream was stopped.
func (s *Stream) broke(err error) {
	select {
	case <-s.stop:
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = errors.Join(s.err, err)
	}
}

// Arrived returns how many bytes have arrived, and why no more will.
func (s *Stream) Arrived() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived.Load(), s.err
}

// Stop ends the stream. It returns why the connection broke before.
func (s *Stream) Stop() error {
	_, err := s.Arrived()
	close(s.stop)
	s.conn.SetDeadline(time.Now()) // a send that waits for the other end
	s.listener.Close()
	s.ended.Wait()
	if err != nil {
		return fmt.Errorf("TCP from %s to %s at %s: %w", s.From, s.To, s.Addr, err)
	}
	return nil
}
