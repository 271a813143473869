package lab_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestUpgrade plays the stories of testdata/upgrade: nodes go from the programs of an earlier commit, which are in the
// directory EDGEWAY_UPGRADE, to the programs under test and back, under traffic. make upgrade runs it.
func TestUpgrade(t *testing.T) {
	from := os.Getenv("EDGEWAY_UPGRADE")
	if from == "" {
		t.Skip("EDGEWAY_UPGRADE is not set; run make upgrade FROM=COMMIT")
	}
	lab.Need(t, lab.Tools(lab.BIRD)...)
	needPrograms(t)
	programs, err := filepath.Abs(bin())
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:  "../../testdata/upgrade",
		Cmds: commands(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("OLD", from)
			env.Setenv("NEW", programs)
			return setup(env, lab.BIRD)
		},
	})
}
