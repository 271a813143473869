package report

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// While the API server restarts (503), the operator is not told to grant a right.
func TestAnnotationsWhileTheServerIsAway(t *testing.T) {
	var code, requests atomic.Int64
	code.Store(http.StatusServiceUnavailable)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Audit-Id", "one")
		body, _ := io.ReadAll(q.Body)
		now := int(code.Load())
		defer requests.Add(1)
		if now != http.StatusOK {
			writeStatusCode(w, now, "Because")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, s.URL)
	a := newAnnotations("n1", func() (*cluster.Connection, error) {
		return cluster.Connect(cluster.KubernetesOptions{Kubeconfig: path})
	}, quickReports)
	running(t, a.Run)
	if err := a.Sync(map[string]string{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "attempts", true, func() bool { return requests.Load() > 2 })
	if p := a.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
	code.Store(http.StatusForbidden)
	eventually(t, "a refusal", 1, func() int { return len(a.Problems()) })
	code.Store(http.StatusOK)
	eventually(t, "it is written", 0, func() int { return len(a.Problems()) })
}
