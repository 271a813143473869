package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// patience holds the waits for an API server.
type patience struct {
	// least and most bound the wait before an attempt. The wait doubles with each attempt. A WAN that is back
	// after seconds is used within seconds.
	least, most time.Duration
	// probe is the longest wait before a server that could not be reached is asked again.
	probe time.Duration
	// each, for each node of the cluster, and widest bound the time over which the nodes that lost a server at one
	// moment come back: 5,000 nodes take 15 s, and a server sees some 500 of them a second.
	each, widest time.Duration
	// steady is how long an attempt must last for the next wait to be the least again.
	steady time.Duration
	// watch is the shortest life that is asked for a watch. The longest is twice that.
	watch time.Duration
	// trust is how long after the last answer a watch may go on from its version: see stale.
	trust time.Duration
	// silence is how long a list may bring nothing.
	silence time.Duration
	// first is how long a World is held back for feeds that have had no answer yet.
	first time.Duration
	// files is the time between two checks of the kubeconfig and its files.
	files time.Duration
	// dial is enough for three tries of TCP's SYN (1, 2 and 4 seconds).
	dial time.Duration
	// answer is longer than an API server lets a request wait for its turn (a minute).
	answer time.Duration
	// ping is the silence after which HTTP/2 is pinged. The connection is dead when half of that time again
	// passes without an answer. For HTTP/1, TCP is probed after half of ping, and is dead at its end. A WAN
	// that swallows packets sends no RST; these probes notice it.
	ping time.Duration
}

var defaultPatience = patience{
	least: 500 * time.Millisecond, most: time.Minute, probe: 5 * time.Second, each: 3 * time.Millisecond, widest: 30 * time.Second,
	steady: 30 * time.Second, watch: 4 * time.Minute, trust: time.Minute, silence: time.Minute, first: 10 * time.Second, files: 5 * time.Second,
	dial: 10 * time.Second, answer: 70 * time.Second, ping: 30 * time.Second,
}

// maxRetryAfter bounds the wait that a server can ask for.
const maxRetryAfter = 5 * time.Minute

// feed is what an API server says about one kind, or about one object. A goroutine lists the kind and then
// follows its changes from the version that it knows.
//
// client-go has two such loops, and neither keeps the promises made here. Its Reflector lists again after each
// cut of the WAN: 100 MB for 5,000 Nodes. Its RetryWatcher resumes at its version, but asks every second
// while a fault lasts: 3,600 requests an hour for each kind, where at most 280 are promised. It
// asks for ever from a version that the server refused (410 as an answer, 504 after etcd was restored)
// instead of listing. It takes versions that run backwards, and waits for ever for a server that hangs.
type feed struct {
	kind kind
	name string // of the one object; "": all objects
	// created is when the feed was first needed.
	created time.Time

	// Guarded by kubernetes.mu:
	items  map[string]told
	synced bool // items are complete
	asked  bool // at least one attempt has ended, or a watch is open
	open   bool // a watch is open
	// failure is why the last attempt failed; nil: it works. since is when the first failed.
	failure   error
	since     time.Time
	confirmed time.Time // when the server last answered

	// Used by the feed's goroutine alone:
	version string // of the items; "": list again
	server  string // that sent the items
	lost    bool   // version belongs to another history than the server's
	// rivalsAt is when the EdgeNodes of other nodes were read; zero: never.
	rivalsAt time.Time
	cut      bool // the last watch did not end as it was asked to
}

// told is the last version of an object that the server sent.
type told struct {
	sum       digest
	statement statement
	slice     *sliced // of a NodeSlice, which is no statement itself
}

// ref names the feed's kind or object as messages do: "Node", "Secret/bgp".
func (f *feed) ref() string {
	if f.name != "" {
		return f.kind.kind + "/" + f.name
	}
	return f.kind.kind
}

// errEmptied is a list that is empty and should not be.
var errEmptied = errors.New("an empty list, and this node is not known either")

// errUnconfirmed is an empty list that could not be confirmed.
var errUnconfirmed = errors.New("an empty list, and no answer whether this node is known")

// follow lists the kind and follows it until ctx ends.
func (k *kubernetes) follow(ctx context.Context, c *Connection, f *feed) {
	if f.server != c.server { // another server has another history
		f.server, f.version, f.lost = c.server, "", false
	}
	wait := k.patience.least
	for ctx.Err() == nil {
		started := k.clock()
		err := k.attempt(ctx, c, f)
		if ctx.Err() != nil {
			return
		}
		k.ended(f, err)
		if k.clock().Sub(started) >= k.patience.steady {
			wait = k.patience.least
		}
		k.pause(ctx, f, err, wait)
		wait = min(2*wait, k.patience.most)
	}
}

// attempt lists, unless the version is known, and watches until the watch ends.
func (k *kubernetes) attempt(ctx context.Context, c *Connection, f *feed) error {
	if k.outdated(f) || k.stale(f) {
		f.version, f.lost = "", true // read anew from etcd: nothing that is known may be undone
	}
	if f.version != "" && f.cut {
		if err := k.compare(ctx, c, f); err != nil {
			return fmt.Errorf("watch %s: %w", f.kind.resource(), err)
		}
	}
	if f.version == "" {
		if err := k.list(ctx, c, f); err != nil {
			return fmt.Errorf("list %s: %w", f.kind.resource(), err)
		}
	}
	f.cut = true
	err := k.watch(ctx, c, f)
	if expired(err) {
		f.version, f.lost = "", code(err) != http.StatusNotFound
		return nil // not a failure: the next attempt lists
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.kind.resource(), err)
	}
	return nil
}

// compare notices a server that lost its memory: etcd was restored from a backup, and versions count from an earlier
// number again. A watch from a version that is still to come hears nothing, and no error says so. A server that
// restarts cuts its watches, so that only a watch that was cut is compared: with the version of a list of no object that
// is read from etcd.
func (k *kubernetes) compare(ctx context.Context, c *Connection, f *feed) error {
	of := f.name
	if of == "" {
		of = k.options.Node
	}
	q := f.query(of)
	q.Set("labelSelector", "none,!none") // no object has a label and has it not
	meta, err := k.page(ctx, c, f.kind, q, func(item) {})
	if err != nil && !expired(err) {
		return err
	}
	if older(meta.ResourceVersion, f.version) {
		f.version, f.lost = "", true
	}
	return nil
}

// stale reports whether this node has had no answer for so long that its version says nothing of the server's history. An
// etcd that was restored from a backup meanwhile may have passed that version again, with other changes: the server then
// accepts the version, and only a list tells the two histories apart. Within patience.trust nobody stops a control plane,
// restores it, and has it write as much again as it lost. The list costs no more than a restart of the API server, and
// of many Nodes it has fewer bytes than the heartbeats of that minute.
func (k *kubernetes) stale(f *feed) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return f.version != "" && k.clock().Sub(f.confirmed) > k.patience.trust
}

// query holds the parameters of both list and watch. A Secret and an EdgeNode are selected by their names, so
// that RBAC can grant that object alone (resourceNames).
func (f *feed) query(name string) url.Values {
	q := url.Values{}
	if name != "" {
		q.Set("fieldSelector", "metadata.name="+name)
	}
	return q
}

// list reads all objects. Any version that the server has in memory will do, unless the server's history
// changed: then list needs the newest version.
func (k *kubernetes) list(ctx context.Context, c *Connection, f *feed) error {
	q := f.query(f.name)
	if !f.lost {
		q.Set("resourceVersion", "0")
	}
	items := f.known()
	if len(items) > 0 {
		q.Set("labelSelector", contentLabel+" notin ("+strings.Join(contents(items), ",")+")")
	}
	meta, err := k.pages(ctx, c, f, q, items)
	if err == nil && slices.ContainsFunc(items[SliceIndex].named(), func(name string) bool { return items[name].slice == nil }) {
		clear(items)
		q.Del("labelSelector")
		meta, err = k.pages(ctx, c, f, q, items)
	}
	if err != nil {
		return err
	}
	if len(items) == 0 && !(f.synced && len(f.items) == 0) {
		if err := k.confirm(ctx, c, f); err != nil {
			return err
		}
	}
	if err := k.rivals(ctx, c, f, items); err != nil {
		return err
	}
	f.version, f.lost = meta.ResourceVersion, false
	k.replaced(f, items)
	return nil
}

// pages adds all objects that a query selects to items.
func (k *kubernetes) pages(ctx context.Context, c *Connection, f *feed, q url.Values, items map[string]told) (listMeta, error) {
	q = maps.Clone(q)
	for {
		meta, err := k.page(ctx, c, f.kind, q, func(it item) { items[it.name] = it.told(f.kind, f.items) })
		if err != nil || meta.Continue == "" {
			return meta, err
		}
		q.Set("continue", meta.Continue)
		q.Del("resourceVersion")
	}
}

// told reads the item, unless the item has not changed.
func (it item) told(k kind, was map[string]told) told {
	if old, ok := was[it.name]; ok && old.sum == it.sum {
		return old
	}
	if k == kindSlice {
		return told{sum: it.sum, slice: readSlice(it, was[it.name].slice)}
	}
	return told{sum: it.sum, statement: it.statement(k)}
}

// page reads one list, or the part of a list that the server gives at once.
func (k *kubernetes) page(ctx context.Context, c *Connection, of kind, q url.Values, each func(item)) (listMeta, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The alarm starts before there is an answer: an error answer can stop in its middle too.
	alarm := time.AfterFunc(2*k.patience.dial+k.patience.answer+k.patience.silence, func() {
		cancel(fmt.Errorf("the answer stopped in its middle for %v", k.patience.silence))
	})
	defer alarm.Stop()
	body, err := c.get(ctx, of, q)
	if err != nil {
		return listMeta{}, err
	}
	defer body.Close()
	alarm.Reset(k.patience.silence)
	meta, err := readList(&noticed{body, func() { alarm.Reset(k.patience.silence) }}, of, each)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return meta, err
}

// confirm doubts an empty list where the last one was not. An etcd that was restored empty gives one, which would remove
// everything that is known. A server that knows this node is believed.
func (k *kubernetes) confirm(ctx context.Context, c *Connection, f *feed) error {
	if f.kind.kind == kindNode || f.kind == kindSlice {
		return nil // World checks for it
	}
	found := false
	node := kind{APIVersion(kindNode), kindNode}
	if _, err := k.page(ctx, c, node, f.query(k.options.Node), func(it item) { found = found || it.name == k.options.Node }); err != nil {
		return fmt.Errorf("%w: ask for Node/%s: %v", errUnconfirmed, k.options.Node, err) // not wrapped: the failure is not this kind's
	}
	if !found {
		return errEmptied
	}
	return nil
}

// watch follows the changes until the watch ends.
func (k *kubernetes) watch(ctx context.Context, c *Connection, f *feed) error {
	lives := k.patience.watch + rand.N(k.patience.watch)
	// The timeout ends a watch that the server does not end, or whose proxy lost the server.
	ctx, cancel := context.WithTimeout(ctx, lives+k.patience.silence)
	defer cancel()
	q := f.query(f.name)
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("resourceVersion", f.version)
	q.Set("timeoutSeconds", strconv.Itoa(max(1, int(lives.Seconds()))))
	body, err := c.get(ctx, f.kind, q)
	if err != nil {
		return err
	}
	defer body.Close()
	k.opened(f)
	opened := k.clock()
	err = readEvents(body, func(event string, object func(any) error) error { return k.event(ctx, c, f, event, object) })
	f.cut = err != nil || k.clock().Sub(opened) < lives-lives/10
	return err
}

func (k *kubernetes) event(ctx context.Context, c *Connection, f *feed, event string, object func(any) error) error {
	if event == eventError {
		var text json.RawMessage
		if err := object(&text); err != nil {
			return err
		}
		return refusal(text, 0, 0)
	}
	it, err := readItem(f.kind, object)
	if err != nil && (event != eventBookmark || !errors.Is(err, errNoObject)) {
		return fmt.Errorf("%s event: %w", event, err)
	}
	if older(it.version, f.version) {
		return apierrors.NewResourceExpired(fmt.Sprintf("version %s after %s: the server's history is another", it.version, f.version))
	}
	var now told
	if event != eventBookmark && event != eventDeleted {
		now = it.told(f.kind, f.items)
		if f.kind.kind == kindEdgeNode && now.sum != f.items[f.name].sum {
			if err := k.met(ctx, c, f, now); err != nil { // the version stays, so the event comes again
				return err
			}
		}
	}
	if it.version != "" {
		f.version = it.version
	}
	switch {
	case event == eventBookmark:
	case event == eventDeleted && f.kind.kind == kindEdgeNode:
		k.replaced(f, map[string]told{})
	case event == eventDeleted:
		k.heard(f, it.name, nil)
	default:
		k.heard(f, it.name, &now)
	}
	return nil
}

// noticed is a reader that calls notice whenever it read something.
type noticed struct {
	r      interface{ Read([]byte) (int, error) }
	notice func()
}

func (n *noticed) Read(p []byte) (int, error) {
	read, err := n.r.Read(p)
	if read > 0 {
		n.notice()
	}
	return read, err
}
