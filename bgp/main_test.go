package bgp

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	// envSpeaker makes the test binary a daemon with one Speaker.
	envSpeaker = "EWBGP_SPEAKER"
	// envAlone is set in the process that runs one test alone.
	envAlone = "EWBGP_ALONE"
)

// sessionCommand makes the test binary the process of one session.
var sessionCommand = []string{self(), "bgp-session"} // read only

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err) // Linux always knows it
	}
	return path
}

func sessionMain() int {
	signal.Ignore(syscall.SIGTERM) // as the daemon does
	if err := ServeSession(os.NewFile(3, "link")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// sideBySide is how many tests run at the same time: they mostly wait for timers of a switch.
const sideBySide = "12"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == sessionCommand[1] {
		os.Exit(sessionMain())
	}
	if os.Getenv(envSpeaker) != "" {
		os.Exit(speakerProcess())
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", sideBySide); err != nil {
			panic(err) // package testing has this flag
		}
	}
	if _, err := lab.Sweep(); err != nil && os.Geteuid() == 0 {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// alone runs the test in a process of its own, because the test counts goroutines. It reports whether this
// is that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envAlone) != "" {
		return true
	}
	t.Parallel()
	cmd := exec.Command(self(), "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.short="+fmt.Sprint(testing.Short()))
	cmd.Env = append(os.Environ(), envAlone+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}
