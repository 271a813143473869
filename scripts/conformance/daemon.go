package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// daemonPatience bounds the start of a daemon.
const daemonPatience = 20 * time.Second

// startDaemon starts the plugin's daemon inside the host's namespace and waits until it is ready.
func (b *bench) startDaemon(host *space) error {
	state := filepath.Join(b.dir, "state")
	line := strings.ReplaceAll(b.o.daemon, placeholder, state)
	ready := strings.ReplaceAll(b.o.ready, placeholder, state)
	_ = os.Remove(ready) // left by the daemon before a reboot
	var err error
	b.daemon, err = lab.Program{Argv: []string{"/bin/sh", "-c", line}, Log: filepath.Join(b.dir, "daemon.log"), Space: host.Space}.Start()
	if err != nil || ready == "" {
		return err
	}
	err = lab.Wait(b.ctx, daemonPatience, func() error {
		if err := b.daemon.Err(); err != nil {
			return err
		}
		_, err := os.Stat(ready)
		return err
	})
	if err != nil {
		err = fmt.Errorf("daemon is not ready: %w: %s", err, lab.Tail(filepath.Join(b.dir, "daemon.log"), 30))
		b.stopDaemon()
	}
	return err
}

// stopDaemon kills the daemon and its process group, because the shell may have a child. Without a daemon
// it does nothing.
func (b *bench) stopDaemon() {
	if b.daemon.Err() == nil {
		_ = unix.Kill(-b.daemon.PID(), unix.SIGKILL) // it may have ended
		_ = b.daemon.Kill()                          // also waits for the end
	}
}
