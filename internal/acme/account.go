package acme

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/go-acme/lego/v4/acme"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// keyAuthorization is what a challenge's token is answered with (RFC 8555 section 8.1), txtValue the TXT value that
// proves it (section 8.4).
func keyAuthorization(token, thumbprint string) string { return token + "." + thumbprint }

func txtValue(keyAuth string) string {
	sum := sha256.Sum256([]byte(keyAuth))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// accountKey reads the account's key and checks that it is the one that the record says.
func accountKey(account cluster.Account) (crypto.Signer, string, error) {
	key, err := cert.ParseKey(account.Key)
	if err != nil {
		return nil, "", fmt.Errorf("account key: %w", err)
	}
	if err := account.Check(); err != nil {
		return nil, "", err
	}
	return key, account.Thumbprint, nil
}

// Register makes the account of account.Key at the CA, or finds it there: the same key always gives the same account.
// It agrees to the CA's terms of service, and binds the account to Config.EAB where that is set.
func (c *Client) Register(ctx context.Context, account cluster.Account) (cluster.Account, error) {
	if account.Directory != c.cfg.Directory {
		return account, fmt.Errorf("register account: it belongs to %s, not to %s", account.Directory, c.cfg.Directory)
	}
	key, _, err := accountKey(account)
	if err != nil {
		return account, fmt.Errorf("register: %w", err)
	}
	s, err := c.open(ctx, "", key)
	if err != nil {
		return account, err
	}
	location, err := s.register(ctx, account.Email)
	if err != nil {
		return account, err
	}
	failpoint.Hit("acme.registered")
	account.URL = location
	return account, nil
}

func (s *session) register(ctx context.Context, email string) (string, error) {
	const op = "register account"
	request := acme.Account{TermsOfServiceAgreed: true}
	if email != "" {
		request.Contact = []string{"mailto:" + email}
	}
	eab := s.client.cfg.EAB
	if s.dir.Meta.ExternalAccountRequired && eab.KeyID == "" {
		return "", issueError(op+": the CA wants an external account binding", nil, hints[externalAccountRequired])
	}
	made, err := call(ctx, s, op, s.dir.NewAccountURL, func() (acme.ExtendedAccount, error) {
		if eab.KeyID != "" {
			return s.core.Accounts.NewEAB(request, eab.KeyID, eab.hmac())
		}
		return s.core.Accounts.New(request)
	})
	switch {
	case err != nil:
		return "", err
	case made.Location == "":
		return "", issueError(op+": the CA gave no account URL", nil, "")
	case made.Status != "" && made.Status != acme.StatusValid:
		return "", issueError(fmt.Sprintf("%s: the CA says that it is %s", op, made.Status), nil, "")
	}
	return made.Location, nil
}
