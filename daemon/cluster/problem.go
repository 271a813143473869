package cluster

import (
	"cmp"
	"fmt"
	"slices"
)

// Reasons of the problems that a source finds.
const (
	badManifest     = "badManifest"     // the file does not parse
	emptyFile       = "emptyFile"       // an empty file, or comments only
	emptyDirectory  = "emptyDirectory"  // no manifest, where there were some before
	unreadableFile  = "unreadableFile"  // permissions, or a dangling link
	unknownKind     = "unknownKind"     // our group, but not our kind or version
	unknownKey      = "unknownKey"      // a key that the kind does not have
	duplicateKey    = "duplicateKey"    // a key twice in one mapping
	duplicateEntry  = "duplicateEntry"  // an entry twice in one list
	duplicateObject = "duplicateObject" // kind and name twice in one directory
	missingField    = "missingField"
	badValue        = "badValue"
	badASN          = "badASN"
	badAddress      = "badAddress"
	badCIDR         = "badCIDR"
	badSelector     = "badSelector"
	badSecret       = "badSecret"
	wrongNamespace  = "wrongNamespace"
)

// String returns the problem in one line: object, what was expected, what is there, the next step.
func (p Problem) String() string {
	s := p.Object + ": "
	switch {
	case p.Want != "" && p.Got != "":
		s += fmt.Sprintf("want %s, got %s", p.Want, p.Got)
	case p.Want != "":
		s += "want " + p.Want
	case p.Got != "":
		s += "got " + p.Got
	default:
		s += p.Reason
	}
	if p.Next != "" {
		s += "; " + p.Next
	}
	return s
}

func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Want, b.Want), cmp.Compare(a.Got, b.Got))
	})
}
