package cluster

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// pace holds the times of a directory's watch.
type pace struct {
	quiet  time.Duration // without an event before changed is called: an editor has finished by then
	limit  time.Duration // the longest that further events can delay the call
	poll   time.Duration // between checks that the directory is still the one we watch
	safety time.Duration // between readings for changes that inotify(7) does not report (NFS, FUSE)
	settle time.Duration // between the readings that must agree before an object is forgotten
}

var defaultPace = pace{
	quiet:  75 * time.Millisecond,
	limit:  500 * time.Millisecond,
	poll:   time.Second,
	safety: 30 * time.Second,
	settle: 100 * time.Millisecond,
}

// Watch calls changed once at the start, so that nothing is lost between World and Watch. Then it calls
// changed whenever the directory may say something else. Without inotify (no instance left, no directory yet)
// it compares the content at every poll instead.
func (m *manifests) Watch(ctx context.Context, changed func()) error {
	w := watching{dir: m.dir, content: m.content()}
	// After an error notify is nil, and the polls find the changes.
	if notify, err := fsnotify.NewWatcher(); err == nil {
		w.notify = notify
		defer notify.Close()
	}
	w.attach()
	changed()
	return w.run(ctx, m, changed)
}

type watching struct {
	dir     string
	notify  *fsnotify.Watcher // nil: no inotify
	watched fs.FileInfo       // the directory that notify watches; nil: none
	content digest
}

func (w *watching) run(ctx context.Context, m *manifests, changed func()) error {
	poll := time.NewTicker(m.pace.poll)
	defer poll.Stop()
	safety := time.NewTicker(m.pace.safety)
	defer safety.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var first time.Time // the first event since changed was last called
	event := func() {
		now := m.clock()
		if first.IsZero() {
			first = now
		}
		quiet.Reset(max(0, min(m.pace.quiet, m.pace.limit-now.Sub(first))))
	}
	compare := func() {
		if content := m.content(); content != w.content {
			w.content = content
			event()
		}
	}
	events, faults := w.channels()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if w.isDirectory(e) {
				w.detach()
				w.attach()
				event()
			}
			if relevant(filepath.Base(e.Name)) {
				event()
			}
		case <-faults: // the kernel's queue overflowed: look
			event()
		case <-quiet.C:
			first = time.Time{}
			w.content = m.content()
			changed()
		case <-poll.C:
			if w.attach() {
				event()
			}
			if w.watched == nil {
				compare()
			}
		case <-safety.C:
			compare()
		}
	}
}

// channels returns nil channels, which never deliver, when there is no inotify.
func (w *watching) channels() (chan fsnotify.Event, chan error) {
	if w.notify == nil {
		return nil, nil
	}
	return w.notify.Events, w.notify.Errors
}

// relevant reports whether an event on that name can change the directory's content. A mounted ConfigMap
// changes by renaming its link "..data".
func relevant(name string) bool { return isManifest(name) || strings.HasPrefix(name, "..") }

// attach makes notify watch the directory that now has the name. The earlier directory may have been removed,
// recreated or mounted over, or its link may point elsewhere. attach reports whether notify now watches
// another directory.
func (w *watching) attach() (moved bool) {
	st, err := os.Stat(w.dir)
	if err == nil && w.watched != nil && os.SameFile(st, w.watched) {
		return false
	}
	if w.notify == nil {
		return false
	}
	moved = w.watched != nil
	w.detach()
	if err != nil || w.notify.Add(w.dir) != nil {
		return moved
	}
	w.watched = st
	return true
}

// isDirectory reports whether the event says that the directory itself is gone. The inode number cannot tell:
// the next directory may get the same number.
func (w *watching) isDirectory(e fsnotify.Event) bool {
	return e.Name == w.dir && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename))
}

func (w *watching) detach() {
	if w.watched != nil {
		w.watched = nil
		_ = w.notify.Remove(w.dir) // usually gone with the directory
	}
}

// content is the digest of everything that World would read.
func (m *manifests) content() digest {
	// A missing directory gives the zero digest, which no directory has.
	sum, _ := m.each(func(string, []byte, error) error { return nil })
	return sum
}
