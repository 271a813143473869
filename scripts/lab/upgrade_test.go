package lab_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestUpgrade plays the stories of testdata/upgrade: nodes go from the programs of an earlier commit, which are in the
// directory bin of EDGEWAY_EARLIER, to the programs under test and back, under traffic. make upgrade runs it.
func TestUpgrade(t *testing.T) {
	from := os.Getenv("EDGEWAY_EARLIER")
	if from == "" {
		t.Skip("EDGEWAY_EARLIER is not set; run make upgrade FROM=COMMIT")
	}
	lab.Need(t, lab.Tools(lab.BIRD)...)
	needPrograms(t)
	deploy, err := filepath.Abs(deployed)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Abs(bin())
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:  "../../testdata/upgrade",
		Cmds: commands(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("OLD", filepath.Join(from, "bin"))
			env.Setenv("NEW", programs)
			env.Setenv("OLDDEPLOY", filepath.Join(from, "deploy/kubernetes"))
			env.Setenv("NEWDEPLOY", deploy)
			return setup(env, lab.BIRD)
		},
	})
}
