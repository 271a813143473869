package main

import sd "github.com/coreos/go-systemd/v22/daemon"

// notifyReady and notifyAlive tell systemd (sd_notify(3)). Without systemd they do nothing. Errors are
// ignored: systemd restarts a service that it does not hear from.
func notifyReady() { sd.SdNotify(false, sd.SdNotifyReady) }
func notifyAlive() { sd.SdNotify(false, sd.SdNotifyWatchdog) }
