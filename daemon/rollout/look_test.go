package rollout

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// server has the DaemonSet edgewayd with three outdated pods, of which the last is on an offline node.
type server struct {
	started time.Time // when the offline node's pod was started
	ended   string    // the deletionTimestamp of that pod; "": none
	current string    // its revision
	back    bool      // while the pods are read, Kubernetes writes the DaemonSet's status
	version int
	deleted []string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Audit-Id", "one")
	if r.Method == http.MethodDelete {
		text, _ := io.ReadAll(r.Body)
		s.deleted = append(s.deleted, r.URL.Path+" "+string(text))
		fmt.Fprint(w, `{}`)
		return
	}
	const owner = `"ownerReferences": [{"uid": "ds"}]`
	pod := func(node, revision, ready, more string) string {
		return fmt.Sprintf(`{"metadata": {"name": "pod-%[1]s", "uid": "uid-%[1]s", "resourceVersion": "7", "labels": {"controller-revision-hash": %[2]q}, %[5]s},
			"spec": {"nodeName": %[1]q}, "status": {"conditions": [{"type": "Ready", "status": %[3]q, "lastTransitionTime": "2026-11-30T10:00:00Z"}]%[4]s}}`, node, revision, ready, more, owner)
	}
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/daemonsets/edgewayd"):
		fmt.Fprintf(w, `{"metadata": {"uid": "ds", "resourceVersion": "%d", "generation": 2}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "minReadySeconds": 30,
			"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}},
			"status": {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 1}}`, s.version)
	case strings.HasSuffix(path, "/controllerrevisions"):
		fmt.Fprintf(w, `{"items": [{"metadata": {"labels": {"controller-revision-hash": "old"}, %[1]s}, "revision": 1}, {"metadata": {"labels": {"controller-revision-hash": "new"}, %[1]s}, "revision": 2}]}`, owner)
	case strings.HasSuffix(path, "/nodes"):
		fmt.Fprintf(w, `{"items": [{"metadata": {"name": "n3"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-11-30T10:00:00Z"}]}}]}`)
	case strings.HasSuffix(path, "/pods"):
		offline := pod("n3", s.current, "False", fmt.Sprintf(`, "startTime": %q`, s.started.Format(time.RFC3339)))
		if s.ended != "" {
			offline = strings.Replace(offline, `"uid":`, fmt.Sprintf(`"deletionTimestamp": %q, "uid":`, s.ended), 1)
		}
		fmt.Fprintf(w, `{"items": [%s]}`, strings.Join([]string{pod("n1", "old", "True", ""), pod("n2", "old", "True", ""), offline}, ","))
		if s.back {
			s.version++
		}
	default:
		http.NotFound(w, r)
	}
}

func (s *server) look(t *testing.T) string {
	t.Helper()
	web := httptest.NewServer(s)
	defer web.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}`, web.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &roller{Options: Options{Server: cluster.KubernetesOptions{Kubeconfig: kubeconfig}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
	defer r.close()
	why, err := r.look(t.Context(), "edgewayd")
	if err != nil {
		t.Fatal(err)
	}
	return why
}

var lostAt = time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC)

// A pod is deleted as it was read: with its UID and its version.
func TestOneOutdatedPodIsDeleted(t *testing.T) {
	s := &server{current: "old", started: lostAt.Add(-time.Hour)}
	why := s.look(t)
	if why != "" || len(s.deleted) != 1 || !strings.Contains(s.deleted[0], "/pods/pod-n1 ") || !strings.Contains(s.deleted[0], `"preconditions":{"uid":"uid-n1","resourceVersion":"7"}`) {
		t.Errorf("deleted %q, because %q; want pod-n1", s.deleted, why)
	}
}

// The offline node comes back while the pods are read, its daemon ran on, and Kubernetes replaces a pod at once: two
// daemons went together.
func TestKubernetesGoesOnWhileThePodsAreRead(t *testing.T) {
	s := &server{current: "old", started: lostAt.Add(-time.Hour), back: true}
	if why := s.look(t); !strings.Contains(why, "changed while its pods were read") || len(s.deleted) > 0 {
		t.Errorf("deleted %q, because %q; want nothing", s.deleted, why)
	}
}

// A node is lost after its daemon was replaced. The operator looks at the node, and deletes the pod as the reason says.
func TestTheOperatorLetsASuspectedRollOutGoOn(t *testing.T) {
	s := &server{current: "new", started: lostAt.Add(-time.Minute)}
	if why := s.look(t); !strings.Contains(why, "kubectl -n kube-system delete pod pod-n3 --wait=false") || len(s.deleted) > 0 {
		t.Fatalf("deleted %q, because %q; want the command", s.deleted, why)
	}
	s.ended = "2026-11-30T10:20:00Z"
	if why := s.look(t); why != "" || len(s.deleted) != 1 {
		t.Errorf("deleted %q, because %q; want pod-n1", s.deleted, why)
	}
}
