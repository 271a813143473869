package routes

import (
	"context"
	"os"
)

// Kernel speaks to one network namespace over sockets that stay open.
type Kernel struct{}

// Open returns the Kernel of the calling thread's network namespace.
func Open() (*Kernel, error) { panic("not yet") }

// OpenNetns returns the Kernel of the namespace that the open file names
// (/proc/PID/ns/net or a bind mount of one). The file may be closed afterwards.
func OpenNetns(ns *os.File) (*Kernel, error) { panic("not yet") }

// Close closes the sockets.
func (k *Kernel) Close() { panic("not yet") }

// Observe reads what the namespace has inside scope, and what it has in the place of each
// object that desired names.
func (k *Kernel) Observe(ctx context.Context, scope Scope, desired State) (State, error) {
	panic("not yet")
}

// Sync makes the namespace look like desired and returns what it changed or could not change.
// The error joins the errors of the changes: siblings are all tried.
func (k *Kernel) Sync(ctx context.Context, scope Scope, desired State) ([]Change, error) {
	panic("not yet")
}

// Host reads what the policy needs to know of the machine.
func (k *Kernel) Host(ctx context.Context) (Host, error) { panic("not yet") }

// Links returns the names of the links that exist and start with prefix.
func (k *Kernel) Links(ctx context.Context, prefix string) ([]Link, error) { panic("not yet") }

// Watch calls changed whenever a link, address, route or neighbour of the namespace changes,
// and once whenever the kernel says that it lost events. It returns when ctx ends.
func (k *Kernel) Watch(ctx context.Context, changed func()) error { panic("not yet") }

// Diff returns what turns observed into desired, in an order that can be applied. It is pure:
// Diff(x, x) is empty, and applying Diff(a, b) to a gives b. Objects of observed that desired
// does not name are deleted; Observe puts only what is in scope there.
func Diff(observed, desired State) []Change { panic("not yet") }
