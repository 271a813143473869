package cluster

// Selector selects nodes by their labels: a Kubernetes label selector, or all().
type Selector struct{ text string }

// ParseSelector parses a selector string: "all()", "ASN=65010", "pool in (a,b)".
func ParseSelector(s string) (Selector, error) { panic("not yet") }

// Selects reports whether the node's labels match.
func (s Selector) Selects(labels map[string]string) bool { panic("not yet") }

func (s Selector) String() string { return s.text }

// Manifests is the source that reads the directory's *.yaml, *.yml and *.json files.
func Manifests(dir string) Source { panic("not yet") }

// Load reads a saved World; it has FromDisk set. An error wraps fs.ErrNotExist when there is none.
func Load(path string) (World, error) { panic("not yet") }

// Save writes the World for Load, atomically and durably, mode 0600.
func Save(path string, w World) error { panic("not yet") }
