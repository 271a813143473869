package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// The error codes of SPEC 1.1.0 section 5, and edgeway's codes from 100 on.
const (
	codeVersion     uint = types.ErrIncompatibleCNIVersion
	codeContainer   uint = types.ErrUnknownContainer
	codeEnvironment uint = types.ErrInvalidEnvironmentVariables
	codeIO          uint = types.ErrIOFailure
	codeDecode      uint = types.ErrDecodingFailure
	codeConfig      uint = types.ErrInvalidNetworkConfig
	codeTryAgain    uint = types.ErrTryAgainLater
	codeUnavailable uint = types.ErrPluginNotAvailable
	codeLimited     uint = types.ErrLimitedConnectivity

	codeExists    uint = 100 // the attachment or the interface already exists
	codeInUse     uint = 101 // a requested address belongs to another attachment
	codeWiring    uint = 102 // the kernel refused a link, address, neighbour or route
	codeDifferent uint = 103 // CHECK: the attachment is not as ADD left it
	codeDelegate  uint = 104 // the delegated IPAM plugin ended without a CNI error
)

// cniError is an error with its code and advice for the operator.
type cniError struct {
	code uint
	err  error
	todo string
	said bool // said by a delegated plugin, which chose the code
}

// fault returns an error that becomes the CNI error with that code. Method next adds the details.
func fault(code uint, format string, args ...any) *cniError {
	return &cniError{code: code, err: fmt.Errorf(format, args...)}
}

func (e *cniError) next(format string, args ...any) *cniError {
	e.todo = fmt.Sprintf(format, args...)
	return e
}

func (e *cniError) Error() string { return e.err.Error() }
func (e *cniError) Unwrap() error { return e.err }

// asCNI finds the code and the advice of any error that a verb returns.
func asCNI(err error) *cniError {
	var e *cniError
	if errors.As(err, &e) {
		return &cniError{code: e.code, err: err, todo: e.todo, said: e.said}
	}
	for _, known := range []struct {
		cause error
		code  uint
		todo  string
	}{
		{ipam.ErrExhausted, codeTryAgain, "delete pods of this node, lower the kubelet's maxPods, or give the node more addresses: a larger pod CIDR, or more in spec.uplinks of its EdgeNode"},
		{ipam.ErrNoPool, codeTryAgain, "give the Node a podCIDR and check edgewayd status, or write ipam.ranges into the network configuration"},
		{ipam.ErrInUse, codeInUse, "ask for another address, or delete the pod that holds it"},
		{ipam.ErrNotInPool, codeConfig, "ask for an address of the node's pool"},
		{ipam.ErrHeld, codeExists, "call DEL before a second ADD of the same container and interface"},
		{ipam.ErrInvalid, codeConfig, "correct ipam in the network configuration"},
		{ipam.ErrDamaged, codeTryAgain, "edgewayd rebuilds the store when it opens it: check edgewayd status and the disk"},
		{ipam.ErrLocked, codeTryAgain, "edgewayd holds the store but does not answer: systemctl restart edgewayd, and check its log"},
		{ipam.ErrClaimed, codeTryAgain, "the runtime must not run two calls for one attachment at a time; if none runs, edgewayd does not answer: systemctl restart edgewayd"},
		{context.DeadlineExceeded, codeTryAgain, "try again"},
		{context.Canceled, codeTryAgain, "try again"},
	} {
		if errors.Is(err, known.cause) {
			return fault(known.code, "%w", err).next("%s", known.todo)
		}
	}
	return fault(codeIO, "%w", err).next("check the cause in msg and try again")
}

// errorReply is err in the form of SPEC section 5.
func errorReply(version string, err error) api.Reply {
	e := asCNI(err)
	if version == "" {
		version = newestVersion
	}
	out, merr := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{version, e.code, e.Error(), e.todo})
	if merr != nil {
		panic("strings and a number always marshal: " + merr.Error())
	}
	return api.Reply{Output: append(out, '\n'), Failed: true}
}
