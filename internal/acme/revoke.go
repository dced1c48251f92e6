package acme

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"

	"github.com/go-acme/lego/v4/acme"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// The problems that a revocation is answered with (RFC 8555 section 6.7).
const (
	alreadyRevoked      = problemPrefix + "alreadyRevoked"
	badRevocationReason = problemPrefix + "badRevocationReason"
	unauthorized        = problemPrefix + "unauthorized"
)

// Revoke has the CA revoke the leaf of bundle (RFC 8555 section 7.6). One that is revoked already is no error, so that a
// request whose answer was lost may be repeated. A CA counts a request that the certificate's own key signed as the proof
// that somebody has that key: so a compromised key signs it, and any other reason is signed by account, unless that has no
// URL, or the CA says that the certificate is not the account's; then the certificate's key signs it too.
//
// Where the directory has no revokeCert the error is errors.ErrUnsupported; else it is a *cluster.IssueError, Dead where
// the CA would answer the same again.
func (c *Client) Revoke(ctx context.Context, account cluster.Account, bundle *cert.Bundle, reason cluster.Reason) error {
	code, ok := reason.Code()
	if !ok {
		return fmt.Errorf("revoke: reason %.60q is not known", string(reason))
	}
	message := acme.RevokeCertMessage{Certificate: base64.RawURLEncoding.EncodeToString(bundle.Leaf().Raw)}
	if reason != cluster.Unspecified { // RFC 5280 section 5.3.1: rather none than that
		message.Reason = &code
	}
	if reason != cluster.KeyCompromise && account.URL != "" && account.Directory == c.cfg.Directory {
		key, _, err := accountKey(account)
		if err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
		err = c.revoke(ctx, account.URL, key, message)
		if kind := problemType(err); kind != unauthorized && kind != accountDoesNotExist {
			return err
		}
	}
	return c.revoke(ctx, "", bundle.Key(), message)
}

// revoke sends the request, signed by key: as the account kid, or, where kid is "", as the holder of the certificate.
func (c *Client) revoke(ctx context.Context, kid string, key crypto.Signer, message acme.RevokeCertMessage) error {
	const op = "revoke"
	s, err := c.open(ctx, kid, key)
	if err != nil {
		return err
	}
	address := s.dir.RevokeCertURL
	if address == "" {
		return fmt.Errorf("%s: the directory %s has no revokeCert: %w", op, c.cfg.Directory, errors.ErrUnsupported)
	}
	if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" {
		return malformedDirectory(c.cfg.Directory, "revokeCert is %.80q, not an https URL", address)
	}
	_, err = call(ctx, s, op, address, func() (struct{}, error) { return struct{}{}, s.core.Certificates.Revoke(message) })
	if problemType(err) == alreadyRevoked {
		err = nil
	}
	if issue, ok := errors.AsType[*cluster.IssueError](err); ok {
		issue.Dead = permanent(err)
		switch problemType(err) {
		case badRevocationReason:
			issue.Hint = "give another reason: this CA does not take that one"
		case unauthorized:
			issue.Hint = "revoke it by the means of the CA that issued it: this one takes neither the account nor the certificate's key"
		}
	}
	if err == nil {
		failpoint.Hit("acme.revoked")
	}
	return err
}
