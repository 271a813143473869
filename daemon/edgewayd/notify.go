package main

import sd "github.com/coreos/go-systemd/v22/daemon"

// notifyReady and notifyAlive tell systemd (sd_notify(3)); elsewhere they do nothing. What
// systemd does not hear it acts upon by itself, so that the results are not needed here.
func notifyReady() { sd.SdNotify(false, sd.SdNotifyReady) }
func notifyAlive() { sd.SdNotify(false, sd.SdNotifyWatchdog) }
