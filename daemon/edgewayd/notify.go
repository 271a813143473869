package main

import sd "github.com/coreos/go-systemd/v22/daemon"

// notifyReady and notifyAlive tell systemd (sd_notify(3)); elsewhere they do nothing. Their errors are
// ignored: systemd restarts a service from which it hears nothing.
func notifyReady() { sd.SdNotify(false, sd.SdNotifyReady) }
func notifyAlive() { sd.SdNotify(false, sd.SdNotifyWatchdog) }
