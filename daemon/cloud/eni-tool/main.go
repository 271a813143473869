// Command eni-tool creates secondary network interfaces for an ENS instance and binds them, so that the instance
// can serve pods as a node. It runs anywhere, and not on the instance itself: the instance is stopped meanwhile.
//
//	eni-tool --profile ./profile.json --instance i-5siavnr3
//
// At its end the instance runs, also after an error, Ctrl-C, or a kill of an earlier run. A second run changes
// nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
)

// Set by the linker; see the Makefile.
var (
	version = "unknown"
	commit  = "unknown"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // what was done is listed, and the instance was started again
	exitUsage  = 2 // nothing was done
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], output{os.Stdout, os.Stderr}, defaultPace()))
}

// output is where results and messages go.
type output struct{ table, messages io.Writer }

func (o output) say(format string, args ...any) { fmt.Fprintf(o.messages, format+"\n", args...) }

// options are the command line.
type options struct {
	accessKey, secretKey, profile string
	instance, region, endpoint    string
	vswitch, securityGroup        string
	eniNumber                     int
	dryRun, version               bool
	timeout                       time.Duration
}

func parse(args []string, messages io.Writer) (o options, err error) {
	f := flag.NewFlagSet("eni-tool", flag.ContinueOnError)
	f.SetOutput(messages)
	f.Usage = func() { fmt.Fprint(messages, usage) }
	f.StringVar(&o.accessKey, "accessKey", "", "")
	f.StringVar(&o.secretKey, "secretKey", "", "")
	f.StringVar(&o.instance, "instance", "", "")
	f.StringVar(&o.region, "region", "ap-southeast-1", "")
	f.StringVar(&o.vswitch, "vswitch", "", "")
	f.IntVar(&o.eniNumber, "eniNumber", 2, "")
	f.StringVar(&o.securityGroup, "securityGroup", "", "")
	f.StringVar(&o.profile, "profile", "", "")
	f.StringVar(&o.endpoint, "endpoint", "", "")
	f.BoolVar(&o.dryRun, "dry-run", false, "")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "")
	f.BoolVar(&o.version, "version", false, "")
	if err := f.Parse(args); err != nil {
		return o, err // f has printed it
	}
	switch {
	case o.version:
	case f.NArg() > 0:
		err = fmt.Errorf("%q: want flags only", f.Arg(0))
	case o.instance == "":
		err = errors.New("--instance: want the ID of the ENS instance")
	case o.eniNumber < 1 || o.eniNumber > cloud.MostInterfaces-1:
		err = fmt.Errorf("--eniNumber %d: want 1 to %d, because an instance has at most %d interfaces with its primary interface", o.eniNumber, cloud.MostInterfaces-1, cloud.MostInterfaces)
	case o.timeout <= 0:
		err = fmt.Errorf("--timeout %v: want a time such as 10m", o.timeout)
	}
	if err != nil {
		fmt.Fprintf(messages, "eni-tool: %v\n\n%s", err, usage)
	}
	return o, err
}

const usage = `Usage: eni-tool --instance ID [--accessKey KEY --secretKey SECRET | --profile FILE] [flags]

eni-tool creates secondary network interfaces (ENIs) for an ENS instance and binds them. It stops the instance
while it binds, and starts it again. Drain the node first if the instance is a node already.

  --accessKey       ID of the Alibaba Cloud AccessKey
  --secretKey       secret of the AccessKey; other users of this machine can see it, so prefer --profile
  --instance        ID of the ENS instance
  --region          region that is used to reach the ENS service (default ap-southeast-1)
  --vswitch         vSwitch of new interfaces (default: the vSwitch of the instance)
  --eniNumber       secondary interfaces that the instance has in the end, each for 25 pods (default 2)
  --securityGroup   security group of new interfaces (default: the security group of the instance)
  --profile         JSON file: {"AccessKey": "...", "SecretKey": "..."}
  --endpoint        host, or http://HOST:PORT, of the ENS service (default: by the region)
  --dry-run         say what would be done, and change nothing
  --timeout         how long binding may take; starting the instance again is not bounded by it (default 10m)
  --version         print the version

Without --accessKey and --profile the key comes from ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET and
ALIBABA_CLOUD_SECURITY_TOKEN. Exit status: 0 done, 1 failed (what was done is listed), 2 wrong usage.
`

func run(ctx context.Context, args []string, out output, p pace) int {
	o, err := parse(args, out.messages)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case o.version:
		fmt.Fprintf(out.table, "eni-tool version %s (commit %s)\n", version, commit)
		return exitOK
	}
	k, err := o.credentials(out)
	if err != nil {
		out.say("eni-tool: %v; set --accessKey and --secretKey, or --profile", err)
		return exitUsage
	}
	c, err := cloud.New(cloud.Options{Credentials: k, Region: o.region, Endpoint: o.endpoint, UserAgent: "eni-tool/" + version})
	if err != nil {
		out.say("eni-tool: %v", err)
		return exitUsage
	}
	b := &binding{options: o, cloud: c, out: out, pace: p}
	err = b.bind(ctx)
	b.list(ctx)
	if err != nil {
		out.say("eni-tool: %v", err)
		out.say("run it again with the same flags: it goes on where it stopped")
		return exitFailed
	}
	return exitOK
}

// credentials takes the key from the flags, the file or the environment, in this order.
func (o options) credentials(out output) (cloud.Credentials, error) {
	switch {
	case o.accessKey != "" || o.secretKey != "":
		out.say("warning: other users of this machine can see --secretKey; put it into a file and use --profile")
		return cloud.Credentials{Key: o.accessKey, Secret: o.secretKey}, nil
	case o.profile != "":
		k, err := cloud.ReadCredentials(o.profile)
		if errors.Is(err, cloud.ErrReadable) {
			out.say("warning: %v", err)
			err = nil
		}
		return k, err
	}
	return cloud.EnvCredentials()
}
