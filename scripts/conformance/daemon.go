package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// daemon is the program that a plugin needs.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	quit chan struct{} // ends the thread that started it, and with that the daemon
	log  *os.File
}

const (
	daemonPatience = 20 * time.Second
	pollInterval   = 10 * time.Millisecond
)

// startDaemon starts the daemon inside the host's namespace and waits until it is ready.
func (b *bench) startDaemon(host *space) (*daemon, error) {
	state := filepath.Join(b.dir, "state")
	line := strings.ReplaceAll(b.o.daemon, placeholder, state)
	ready := strings.ReplaceAll(b.o.ready, placeholder, state)
	_ = os.Remove(ready) // of the daemon before a reboot
	log, err := os.Create(filepath.Join(b.dir, "daemon.log"))
	if err != nil {
		return nil, err
	}
	d := &daemon{cmd: exec.Command("/bin/sh", "-c", line), done: make(chan struct{}), quit: make(chan struct{}), log: log}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// Pdeathsig is sent when the starting thread ends, so that one stays.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(host.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = d.cmd.Start()
		}
		started <- err
		if err == nil {
			<-d.quit
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	if b.o.ready == "" {
		return d, nil
	}
	err = wait(daemonPatience, func() error {
		select {
		case <-d.done:
			return nil
		default:
		}
		_, err := os.Stat(ready)
		return err
	})
	select {
	case <-d.done:
		err = fmt.Errorf("daemon ended: %s", d.cmd.ProcessState)
	default:
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		d.stop()
		return nil, fmt.Errorf("daemon is not ready: %w: %s", err, text)
	}
	return d, nil
}

// stop ends the daemon, at once; nil is no daemon.
func (d *daemon) stop() {
	if d == nil {
		return
	}
	_ = unix.Kill(-d.cmd.Process.Pid, unix.SIGKILL) // its group: sh may have a child
	<-d.done
	close(d.quit)
	d.log.Close()
}

// wait calls f until it returns nil; its error is f's last one.
func wait(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}
