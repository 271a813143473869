package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// A deleted network configuration was written again after up to half a minute, and another program's file that sorts before
// it was named as late.
func TestNetworkConfigurationIsLookedAfter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		looks := 0
		go func() { _ = watchDir(ctx, dir, func() { looks++ }) }()
		synctest.Wait() // it has seen the directory
		for i, change := range []func() error{
			func() error { return nil },
			func() error { return os.Mkdir(dir, 0o755) },
			func() error { return os.WriteFile(filepath.Join(dir, "05-other.conflist"), nil, 0o644) },
			func() error { return os.Remove(filepath.Join(dir, "05-other.conflist")) },
			func() error { return os.Remove(dir) },
		} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * confEvery)
			synctest.Wait()
			if looks != i {
				t.Errorf("after change %d: %d looks", i, looks)
			}
		}
		cancel()
	})
}
