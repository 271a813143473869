package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// fake is as much of an API server as the controller asks for: resource versions, UIDs, lists,
// watches, JSON patches, pod CIDRs that nobody can change. It is used where a real one cannot be
// made to fail at will.
type fake struct {
	t    testing.TB
	http *httptest.Server

	mu      sync.Mutex // guards what is below
	version int
	objects map[string]object // by path
	history []string          // path of each version, for watches
	gone    map[int]object    // what a version deleted
	changed chan struct{}     // closed and replaced at each version
	faults  func(r *http.Request) fault
	events  []string
	broken  []string // what no API server would have let happen, or what must never happen
}

type object map[string]any

// fault is what happens to a request instead of, or beside, its answer.
type fault struct {
	status int  // answered instead; 0: none
	lost   bool // done, but the answer does not arrive
	delay  time.Duration
}

func newFake(t testing.TB) *fake {
	f := &fake{t: t, objects: map[string]object{}, gone: map[int]object{}, changed: make(chan struct{})}
	f.http = httptest.NewServer(f)
	t.Cleanup(func() {
		f.http.CloseClientConnections() // watches
		f.http.Close()
		for _, b := range f.broken {
			t.Error(b)
		}
	})
	f.put("/apis/networking.k8s.io/v1/servicecidrs/kubernetes", object{"spec": object{"cidrs": []string{"10.96.0.0/16", "fd00:96::/112"}}})
	return f
}

func (f *fake) config() *rest.Config {
	return &rest.Config{Host: f.http.URL}
}

func (f *fake) set(faults func(r *http.Request) fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = faults
}

// put stores an object of a new or of the same UID as a new version.
func (f *fake) put(path string, o object) object {
	f.version++
	meta, _ := o["metadata"].(map[string]any)
	meta = maps.Clone(meta)
	if meta == nil {
		meta = map[string]any{}
	}
	meta["name"], meta["resourceVersion"] = path[strings.LastIndex(path, "/")+1:], strconv.Itoa(f.version)
	if meta["uid"] == nil {
		meta["uid"], meta["creationTimestamp"] = fmt.Sprint("uid-", f.version), time.Now().UTC().Format(time.RFC3339)
	}
	o = maps.Clone(o)
	o["metadata"] = meta
	f.objects[path] = o
	f.history = append(f.history, path)
	close(f.changed)
	f.changed = make(chan struct{})
	return o
}

func (f *fake) create(name string, cidrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	spec := map[string]any{}
	if len(cidrs) > 0 {
		spec["podCIDRs"] = cidrs
	}
	f.put("/api/v1/nodes/"+name, object{"kind": "Node", "apiVersion": "v1", "spec": spec})
}

func (f *fake) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := "/api/v1/nodes/" + name
	f.version++
	f.gone[f.version] = f.objects[path]
	f.history = append(f.history, path)
	delete(f.objects, path)
	close(f.changed)
	f.changed = make(chan struct{})
}

// podCIDRs returns what each Node has.
func (f *fake) podCIDRs() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for path, o := range f.objects {
		if name, ok := strings.CutPrefix(path, "/api/v1/nodes/"); ok {
			out[name] = strings.Join(cidrsOf(o), ", ")
		}
	}
	return out
}

func cidrsOf(o object) []string {
	var n struct{ Spec struct{ PodCIDRs []string } }
	text, _ := json.Marshal(o)
	_ = json.Unmarshal(text, &n)
	return n.Spec.PodCIDRs
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	faults := f.faults
	f.mu.Unlock()
	var bad fault
	if faults != nil {
		bad = faults(r)
	}
	if bad.delay > 0 {
		time.Sleep(bad.delay) // this is what is tested: a request that arrives late, even from one who hung up
	}
	switch {
	case bad.status == -1:
		panic(http.ErrAbortHandler) // the connection breaks
	case bad.status != 0:
		if bad.status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "0")
		}
		answer(w, bad.status, "made to fail")
		return
	case r.URL.Query().Get("watch") != "":
		f.watch(w, r)
		return
	}
	f.mu.Lock()
	status, out := f.do(r, body)
	f.mu.Unlock()
	if bad.lost {
		panic(http.ErrAbortHandler)
	}
	if status >= 400 {
		answer(w, status, fmt.Sprint(out))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out)
}

// reasons are the API server's, by status.
var reasons = map[int]string{403: "Forbidden", 404: "NotFound", 409: "Conflict", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError"}

func answer(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reasons[status], "message": message, "code": status})
}

func (f *fake) do(r *http.Request, body []byte) (int, any) {
	path := r.URL.Path
	o, found := f.objects[path]
	switch r.Method {
	case http.MethodGet:
		if found {
			return 200, o
		}
		if collection := path[strings.LastIndex(path, "/")+1:]; collection == "nodes" || collection == "servicecidrs" {
			items := []object{}
			for _, p := range slices.Sorted(maps.Keys(f.objects)) {
				if strings.HasPrefix(p, path+"/") {
					items = append(items, f.objects[p])
				}
			}
			return 200, object{"metadata": object{"resourceVersion": strconv.Itoa(f.version)}, "items": items}
		}
		return 404, path + " not found"
	case http.MethodPost:
		var in object
		if err := json.Unmarshal(body, &in); err != nil {
			return 400, err
		}
		if strings.HasSuffix(path, "/events") {
			about, _ := in["involvedObject"].(map[string]any)
			f.events = append(f.events, fmt.Sprint(about["name"], " ", in["reason"], ": ", in["message"]))
			return 201, in
		}
		meta, _ := in["metadata"].(map[string]any)
		path += "/" + fmt.Sprint(meta["name"])
		if _, found := f.objects[path]; found {
			return 409, path + " exists"
		}
		return 201, f.put(path, in)
	case http.MethodPut:
		var in object
		if err := json.Unmarshal(body, &in); err != nil {
			return 400, err
		}
		meta, _ := in["metadata"].(map[string]any)
		if !found {
			return 404, path + " not found"
		}
		if was := o["metadata"].(map[string]any)["resourceVersion"]; meta["resourceVersion"] != was {
			return 409, fmt.Sprintf("version %v, not %v", was, meta["resourceVersion"])
		}
		return 200, f.put(path, in)
	case http.MethodPatch:
		if !found {
			return 404, path + " not found"
		}
		return f.patch(path, o, body)
	}
	return 405, r.Method
}

// patch carries out a JSON patch (RFC 6902) of test and add.
func (f *fake) patch(path string, o object, body []byte) (int, any) {
	var steps []struct {
		Op, Path string
		Value    any
	}
	if err := json.Unmarshal(body, &steps); err != nil {
		return 400, err
	}
	text, _ := json.Marshal(o)
	var next map[string]any
	_ = json.Unmarshal(text, &next)
	for _, s := range steps {
		keys := strings.Split(strings.TrimPrefix(s.Path, "/"), "/")
		in, ok := next[keys[0]].(map[string]any)
		if !ok || len(keys) != 2 {
			return 422, "path " + s.Path
		}
		got, _ := json.Marshal(in[keys[1]])
		want, _ := json.Marshal(s.Value)
		switch {
		case s.Op == "add":
			in[keys[1]] = s.Value
		case s.Op == "test" && !bytes.Equal(got, want):
			return 422, fmt.Sprintf("test %s: %s is not %s", s.Path, got, want)
		}
	}
	if was, will := cidrsOf(o), cidrsOf(next); len(was) > 0 && !slices.Equal(was, will) {
		return 422, "node updates may not change podCIDR except from \"\" to valid"
	} else if len(was) == 0 {
		f.check(path, will)
	}
	return 200, f.put(path, next)
}

// check says it when a Node is given what another one has.
func (f *fake) check(path string, cidrs []string) {
	for other, o := range f.objects {
		if other == path || !strings.HasPrefix(other, "/api/v1/nodes/") {
			continue
		}
		for _, a := range cidrsOf(o) {
			for _, b := range cidrs {
				if netip.MustParsePrefix(a).Overlaps(netip.MustParsePrefix(b)) {
					f.broken = append(f.broken, fmt.Sprintf("%s gets %s, of which %s has %s", path, b, other, a))
				}
			}
		}
	}
}

func (f *fake) watch(w http.ResponseWriter, r *http.Request) {
	at, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		answer(w, 400, "a watch without resourceVersion")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	for {
		f.mu.Lock()
		var out []object
		for ; at < f.version; at++ {
			path := f.history[at]
			if !strings.HasPrefix(path, r.URL.Path+"/") {
				continue
			}
			if o := f.gone[at+1]; o != nil {
				out = append(out, object{"type": "DELETED", "object": typed(o)})
			} else if o := f.objects[path]; o != nil {
				out = append(out, object{"type": "MODIFIED", "object": typed(o)})
			}
		}
		changed := f.changed
		f.mu.Unlock()
		for _, o := range out {
			_ = json.NewEncoder(w).Encode(o)
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// typed is a Node as it stands alone: a watch has no list's kind.
func typed(o object) object {
	o = maps.Clone(o)
	o["kind"], o["apiVersion"] = "Node", "v1"
	return o
}

// storm lets requests fail in every way, at random.
func storm(percent int) func(r *http.Request) fault {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 4))
	return func(r *http.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(100) >= percent {
			return fault{delay: time.Duration(random.IntN(5)) * time.Millisecond}
		}
		switch random.IntN(5) {
		case 0:
			return fault{status: 500}
		case 1:
			return fault{status: 429}
		case 2:
			return fault{status: -1}
		case 3:
			return fault{lost: true}
		}
		return fault{delay: time.Duration(random.IntN(300)) * time.Millisecond}
	}
}
